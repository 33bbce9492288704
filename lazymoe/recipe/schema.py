"""A recipe: a base model, experts with the prompts that should reach them, and a few options.

The language is mergekit-moe's, so its YAML files load unchanged. Whether a recipe can work is a question for `review`,
as far as it alone can tell, and for `lazymoe.planning`.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lazymoe.data import ready_made
from lazymoe.errors import error, failure, nearest
from lazymoe.recipe.mergekit import is_dense, sift, spell_reference
from lazymoe.recipe.mistakes import Loc, explain, place
from lazymoe.recipe.reference import Reference
from lazymoe.recipe.secrets import REMEDY, WHAT, find_token
from lazymoe.recipe.yaml_text import SURROGATE, parse, write

GateMode = Literal["fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"]
DType = Literal["float32", "float16", "bfloat16"]
SharedWeights = Literal["base", "average", "regmean"]
ExpertWeights = Literal["own", "corrected"]
STREAMED = ("fit", "hidden", "hidden_avg", "hidden_last")  # gate modes that run models, a layer at a time
PROMPTED = (*STREAMED, "cheap_embed")  # those that read the prompts
SIDES = ("positive_prompts", "negative_prompts")


class Model(NamedTuple):
    """A model that a recipe names, and where: ``experts[1].source_model (expert 2 of 4)``."""

    where: str
    reference: Reference


@dataclass(frozen=True)
class Origin:
    """Where a recipe comes from. That makes no difference between recipes that ask for the same.

    Attributes:
        folder: that its file is in; None if it comes from no file.
        passed_over: paths of the keys that were in it and aren't ours.
    """

    folder: Path | None = field(default=None, compare=False)
    passed_over: tuple[str, ...] = field(default=(), compare=False)


def _no_flag(number: Any) -> Any:
    if isinstance(number, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return number


def _short_dtype(name: Any) -> Any:
    return name.removeprefix("torch.") if isinstance(name, str) else name


# as mergekit takes them: numbers also as text, a dtype also by torch's name, a model also by a mapping
Integer = Annotated[int, Field(strict=False), BeforeValidator(_no_flag)]
Number = Annotated[float, Field(strict=False, allow_inf_nan=False), BeforeValidator(_no_flag)]
DTypeName = Annotated[DType, BeforeValidator(_short_dtype)]
ModelName = Annotated[str, Field(min_length=1), BeforeValidator(spell_reference)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Texts(_Strict):
    """Many prompts at once: a file, or a data set on the Hub. `lazymoe.recipe.texts` reads them.

    Attributes:
        file: a ``.txt`` (a paragraph is a prompt), ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, found from the
            recipe's folder, else from the working folder; with a data set the file in it to read, by default the first
            of its training files.
        dataset: a Hub id, with ``@revision`` if wanted.
        field: the column, or the key of each object, that holds the text: text itself, a list of texts, or a chat,
            whose turns are joined by line breaks. By default the first there is of ``text``, ``messages``,
            ``conversations``, ``prompt`` and ``instruction``.
        limit: how many are taken, from the beginning.
    """

    file: str | None = None
    dataset: str | None = None
    field: str | None = None
    limit: Integer = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _names_something(self) -> Texts:
        if not self.file and not self.dataset:
            raise ValueError("prompts come from a 'file' or a 'dataset'")
        return self


def _as_list(prompts: Any) -> Any:
    return [prompts] if isinstance(prompts, (str, dict, Texts)) else prompts


def _no_text(prompt: Any) -> Any:
    """Refuse a mapping that names no texts: a prompt with ``: `` in it is one to YAML."""
    known = list(Texts.model_fields)
    if not isinstance(prompt, Mapping) or any(difflib.get_close_matches(str(key), known, 1) for key in prompt):
        return prompt
    lines = [f"{key}: {value if isinstance(value, str) else '…'}" for key, value in prompt.items()]
    raise PydanticCustomError("unquoted", "{text}", {"text": json.dumps("\n".join(lines), ensure_ascii=False)})


def _whole(text: str) -> str:
    if SURROGATE.search(text):
        raise PydanticCustomError("half", "half of a pair of surrogates")
    return text


_Prompt = Annotated[
    Annotated[str, AfterValidator(_whole), Tag("written")] | Annotated[Texts, BeforeValidator(_no_text), Tag("texts")],
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

    source_model: ModelName
    positive_prompts: Prompts | None = None
    negative_prompts: Prompts | None = None
    noise_scale: Annotated[Number, Field(ge=0)] | None = None
    residual_scale: Number | None = None

    @property
    def positive(self) -> list[str]:
        """The positive prompts that are written out, without blank ones."""
        return [p for p in self.positive_prompts or [] if isinstance(p, str) and p.strip()]

    @property
    def negative(self) -> list[str]:
        """The negative prompts that are written out, without blank ones."""
        return [p for p in self.negative_prompts or [] if isinstance(p, str) and p.strip()]


class Recipe(_Strict):
    """A mixture of experts as the user asked for it.

    Attributes:
        base_model: gives the tokenizer, and attention, norms and embeddings or what the experts' are measured against.
        experts: one model for each expert, in the order of the router's rows.
        gate_mode: how the routers are made, see `lazymoe.computing`.
        shared_weights: where attention, norms, embeddings and head come from: the base model, the average of the
            experts, or `regmean`, see `lazymoe.computing.shared_weights`. By default `regmean` for fitted routers, else
            `base`.
        expert_weights: the experts' feed-forward weights as they are (`own`), or with each down projection `corrected`
            for the mixture, see `lazymoe.computing.correction`: a third of the experts' weights is then computed.
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

    base_model: ModelName
    experts: list[Expert] = Field(min_length=1)
    gate_mode: GateMode = "fit"
    shared_weights: SharedWeights | None = None
    expert_weights: ExpertWeights = "own"
    dtype: DTypeName | None = None
    experts_per_token: Integer = Field(default=2, ge=1)
    shared_experts: list[Expert] | None = None
    architecture: str | None = None
    _origin: Origin = PrivateAttr(default=Origin())

    def __init__(self, /, **fields: Any) -> None:
        if (loc := find_token(fields)) is not None:
            listed = fields.get("experts")
            where = place(loc, len(listed) if isinstance(listed, list) else 0)
            raise error("recipe.token", where or "recipe", WHAT, REMEDY)
        if is_dense(fields, list(Recipe.model_fields)):
            what = "this is a recipe for mergekit's dense merges, which mix weights"
            remedy = "A mixture needs 'experts': [{source_model: your-name/your-model}] in place of models and slices."
            raise error("recipe.dense", "recipe", what, remedy)
        fields, passed_over = sift(fields, list(Recipe.model_fields), list(Expert.model_fields))
        try:
            super().__init__(**fields)
            self._origin = Origin(passed_over=tuple(passed_over))
        except ValidationError as e:
            literals = {
                "gate_mode": GateMode,
                "shared_weights": SharedWeights,
                "expert_weights": ExpertWeights,
                "dtype": DType,
            }
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
        data = parse(text, where)
        if not isinstance(data, dict):
            what = "a recipe is a list of 'key: value' lines"
            raise error("recipe.yaml", where, what, "Begin with 'base_model: ...'.")
        return cls(**{str(key): value for key, value in data.items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a YAML file, or one of the ready-made recipes by its name.

        Args:
            path: of the file; or the name.

        Raises:
            RecipeError: if there is no such file, it can't be read, or with every mistake found in it.
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
        recipe = cls.from_yaml(text, str(path))
        recipe._origin = replace(recipe._origin, folder=file.parent)
        return recipe

    @classmethod
    def read(cls, given: Recipe | str | os.PathLike[str]) -> Recipe:
        """Read a recipe from whatever names one: itself, its file, or the name of a ready-made one.

        Args:
            given: what names it.

        Raises:
            RecipeError: as `from_file`.
        """
        return given if isinstance(given, Recipe) else cls.from_file(given)

    def to_yaml(self) -> str:
        """Write the recipe as YAML that `from_yaml` reads back equal; fields left at their default are left out."""
        data = self.model_dump(exclude_unset=True)
        return write(data)

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return self._origin

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

    @property
    def prompts(self) -> list[str | Texts]:
        """The prompts of all experts, of both sides."""
        return [prompt for expert in self.every_expert for side in SIDES for prompt in getattr(expert, side) or ()]

    def with_texts(self, change: Callable[[Texts], Texts]) -> Recipe:
        """Copy the recipe with other names of files and data sets of prompts.

        Args:
            change: gives the name that takes a name's place.
        """
        every = []
        for expert in self.every_expert:
            sides = {side: getattr(expert, side) for side in SIDES if getattr(expert, side)}
            named = {s: [change(p) if isinstance(p, Texts) else p for p in listed] for s, listed in sides.items()}
            every.append(expert.model_copy(update=named))
        return self.with_experts(every)

    def with_experts(self, every: list[Expert]) -> Recipe:
        """Copy the recipe with others in place of `every_expert`.

        Args:
            every: as many experts as there are, then as many shared ones.
        """
        n = len(self.experts)
        return self.with_fields(experts=every[:n], **({"shared_experts": every[n:]} if self.shared_experts else {}))

    def with_fields(self, **fields: Any) -> Recipe:
        """Copy the recipe with other values in these fields, which aren't checked again.

        Args:
            fields: name to value.
        """
        recipe = Recipe.model_construct(self.model_fields_set | set(fields), **{**dict(self), **fields})
        recipe._origin = self._origin
        return recipe

    def place(self, expert: int, field: str) -> str:
        """Spell how messages name a field of one of `every_expert`.

        Args:
            expert: its number, from 0.
            field: the field's name.
        """
        n = len(self.experts)
        loc = ("experts", expert, field) if expert < n else ("shared_experts", expert - n, field)
        return place(loc, n)


def _fields_at(loc: Loc) -> list[str]:
    """List what fields there are at a place of a recipe."""
    kind: type[_Strict] = Texts if "texts" in loc else Expert if len(loc) > 1 else Recipe
    return list(kind.model_fields)
