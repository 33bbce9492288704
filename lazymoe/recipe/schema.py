"""A recipe: a base model, experts with the prompts that should reach them, and a few options.

The language is mergekit-moe's, so its YAML files load unchanged. Whether a recipe can work is a question for `review`,
as far as it alone can tell, and for `lazymoe.planning`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from lazymoe.data import ready_made
from lazymoe.errors import error, failure, nearest
from lazymoe.recipe.mistakes import Loc, explain, place
from lazymoe.recipe.reference import Reference

GateMode = Literal["fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"]
DType = Literal["float32", "float16", "bfloat16"]
SharedWeights = Literal["base", "average", "regmean"]
STREAMED = ("fit", "hidden", "hidden_avg", "hidden_last")  # gate modes that run models, a layer at a time
PROMPTED = (*STREAMED, "cheap_embed")  # those that read the prompts
SIDES = ("positive_prompts", "negative_prompts")


class Model(NamedTuple):
    """A model that a recipe names, and where: ``experts[1].source_model (expert 2 of 4)``."""

    where: str
    reference: Reference


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Texts(_Strict):
    """Many prompts at once: a file, or a data set on the Hub. `lazymoe.recipe.texts` reads them.

    Attributes:
        file: a ``.txt`` (a paragraph is a prompt), ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file; with a data
            set the file in it to read, by default the first of its training files.
        dataset: a Hub id, with ``@revision`` if wanted.
        field: the column, or the key of each object, that holds the text.
        limit: how many are taken, from the beginning.
    """

    file: str | None = None
    dataset: str | None = None
    field: str = "text"
    limit: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _names_something(self) -> Texts:
        if not self.file and not self.dataset:
            raise ValueError("prompts come from a 'file' or a 'dataset'")
        return self


def _as_list(prompts: Any) -> Any:
    return [prompts] if isinstance(prompts, (dict, Texts)) else prompts


_Prompt = Annotated[
    Annotated[str, Tag("written")] | Annotated[Texts, Tag("texts")],
    Discriminator(lambda prompt: "texts" if isinstance(prompt, (dict, Texts)) else "written"),
]
Prompts = Annotated[list[_Prompt], BeforeValidator(_as_list)]


class Expert(_Strict):
    """One fine-tuned model whose feed-forward weights become an expert.

    Attributes:
        source_model: where it is: a folder or a Hub id, see :class:`Reference`.
        positive_prompts: texts that should reach this expert, or where to find them.
        negative_prompts: texts that should not.
        noise_scale: standard deviation of Gaussian noise added to its weights, to tell equal experts apart.
        residual_scale: factor on the expert's output (its down projection).
    """

    source_model: str = Field(min_length=1)
    positive_prompts: Prompts | None = None
    negative_prompts: Prompts | None = None
    noise_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    residual_scale: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def positive(self) -> list[str]:
        """The positive prompts that are written out."""
        return [p for p in self.positive_prompts or [] if isinstance(p, str)]

    @property
    def negative(self) -> list[str]:
        """The negative prompts that are written out."""
        return [p for p in self.negative_prompts or [] if isinstance(p, str)]


class Recipe(_Strict):
    """A mixture of experts as the user asked for it.

    Attributes:
        base_model: gives the tokenizer, and attention, norms and embeddings or what the experts' are measured against.
        experts: one model for each expert, in the order of the router's rows.
        gate_mode: how the routers are made, see `lazymoe.computing`.
        shared_weights: where attention, norms, embeddings and head come from: the base model, the average of the
            experts, or `regmean`, see `lazymoe.computing.shared_weights`. By default `regmean` for fitted routers, else
            `base`.
        dtype: of the output; the base model's own if absent.
        experts_per_token: how many experts each token passes through (top-k).
        shared_experts: experts that every token passes through, on hosts that have them.
        architecture: the output's family, where the inputs leave a choice.

    Raises:
        RecipeError: with every mistake found, each naming its field.

    Example:
        >>> Recipe.from_yaml("base_model: a/b\\ngate_mode: random\\nexperts: [{source_model: a/b}]").experts_per_token
        2
    """

    base_model: str = Field(min_length=1)
    experts: list[Expert] = Field(min_length=1)
    gate_mode: GateMode = "fit"
    shared_weights: SharedWeights | None = None
    dtype: DType | None = None
    experts_per_token: int = Field(default=2, ge=1)
    shared_experts: list[Expert] | None = None
    architecture: str | None = None

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as e:
            literals = {"gate_mode": GateMode, "shared_weights": SharedWeights, "dtype": DType}
            words = {field: get_args(literal) for field, literal in literals.items()}
            raise failure(explain(e, fields, _fields_at, words)) from None

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from YAML text.

        Args:
            text: the YAML.
            where: how messages name it.

        Raises:
            RecipeError: with every mistake found, each naming its field.
        """
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as e:
            mark = getattr(e, "problem_mark", None)
            place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
            what = f"this isn't valid YAML: {getattr(e, 'problem', None) or 'it can not be parsed'}"
            raise error("recipe.yaml", place, what, "Check indentation, colons and quotes there.") from None
        if not isinstance(data, dict):
            what = "a recipe is a list of 'key: value' lines"
            raise error("recipe.yaml", where, what, "Begin with 'base_model: ...'.")
        return cls(**{str(key): value for key, value in data.items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a YAML file, or one of the ready-made recipes by its name.

        Raises:
            RecipeError: if there is no such file, or with every mistake found in it.
        """
        file = Path(os.path.expanduser(path))
        if not file.exists():
            beside = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
            known = {name: file.with_name(name) for name in beside} if file.suffix else {}
            if str(path) not in ready_made():
                what = "there is no such file, and no ready-made recipe of that name"
                raise error("recipe.not-found", path, what, nearest(file.name, known or ready_made()))
            file = ready_made()[str(path)]
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not a UTF-8 text file"
            raise error("recipe.unreadable", path, f"the recipe can't be read: {reason}", "Check the path.") from None
        return cls.from_yaml(text, str(path))

    @classmethod
    def read(cls, given: Recipe | str | os.PathLike[str]) -> Recipe:
        """A recipe from whatever names one: itself, its file, or the name of a ready-made one."""
        return given if isinstance(given, Recipe) else cls.from_file(given)

    def to_yaml(self) -> str:
        """The recipe as YAML that `from_yaml` reads back equal; fields left at their default are left out."""
        data = self.model_dump(exclude_unset=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)

    @functools.cached_property
    def models(self) -> tuple[Model, ...]:
        """Every model of the recipe with its place, the base model first, then those of `every_expert`."""
        experts = [(self.place(i, "source_model"), e.source_model) for i, e in enumerate(self.every_expert)]
        return tuple(Model(where, Reference.parse(name)) for where, name in [("base_model", self.base_model), *experts])

    @property
    def names(self) -> list[str]:
        """A short name for each expert, all different."""
        short = [model.reference.short_name for model in self.models[1 : 1 + len(self.experts)]]
        return [f"{name} ({i})" if short.count(name) > 1 else name for i, name in enumerate(short, 1)]

    @property
    def every_expert(self) -> list[Expert]:
        """The experts, then the shared ones."""
        return [*self.experts, *(self.shared_experts or [])]

    def with_experts(self, every: list[Expert]) -> Recipe:
        """The recipe with others in place of `every_expert`."""
        n = len(self.experts)
        return self.with_fields(experts=every[:n], **({"shared_experts": every[n:]} if self.shared_experts else {}))

    def with_fields(self, **fields: Any) -> Recipe:
        """The recipe with other values in these fields."""
        return Recipe.model_construct(self.model_fields_set | set(fields), **{**dict(self), **fields})

    def place(self, expert: int, field: str) -> str:
        """How messages name a field of one of `every_expert`, by its number (from 0)."""
        n = len(self.experts)
        loc = ("experts", expert, field) if expert < n else ("shared_experts", expert - n, field)
        return place(loc, n)


def _fields_at(loc: Loc) -> list[str]:
    """What fields there are at a place of a recipe."""
    kind: type[_Strict] = Texts if "texts" in loc else Expert if len(loc) > 1 else Recipe
    return list(kind.model_fields)
