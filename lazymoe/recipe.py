"""What the user wants: a base model, experts with the prompts that should reach them, and a few options.

The language is mergekit-moe's, so its YAML files load unchanged. Nothing here looks at a model: whether the recipe can
work is a question for `check`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

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

from lazymoe.errors import LazyMoEError, Problem, error, nearest

GateMode = Literal["fit", "hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"]
DType = Literal["float32", "float16", "bfloat16"]
SharedWeights = Literal["base", "average", "regmean"]
GGUF = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([\w./-]+\.gguf)")  # a repo and a file of it


@dataclass(frozen=True)
class Reference:
    """A model by name: ``path-or-repo[@revision][+adapter]``, or a GGUF file of a repo: ``org/name/file.gguf``.

    An existing path is taken as it stands, even with an ``@`` or a ``+`` in it.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        if cls(text).path.exists():
            return cls(text)
        model, _, adapter = text.partition("+")
        model, _, revision = model.partition("@")
        in_repo = GGUF.fullmatch(model)
        if in_repo and not cls(model).path.exists():
            return cls(in_repo[1], revision or None, adapter or None, in_repo[2])
        return cls(model, revision or None, adapter or None)

    @property
    def path(self) -> Path:
        """Where the model would be, if its name is a path. (`Path.expanduser` fails on a ``~`` that is nobody's.)"""
        return Path(os.path.expanduser(self.model))

    def __str__(self) -> str:
        model = f"{self.model}/{self.file}" if self.file else self.model
        return model + (f"@{self.revision}" * bool(self.revision)) + (f"+{self.adapter}" * bool(self.adapter))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Texts(_Strict):
    """Many prompts at once: a file, or a data set on the Hub. `lazymoe.prompts` reads them.

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
        gate_mode: how the routers are made, see `lazymoe.router`.
        shared_weights: where attention, norms, embeddings and head come from: the base model, the average of the
            experts, or `regmean`, see `lazymoe.router.shared`. By default `regmean` for fitted routers, else `base`.
        dtype: of the output; the base model's own if absent.
        experts_per_token: how many experts each token passes through (top-k).
        shared_experts: experts that every token passes through, on hosts that have them.
        architecture: the output's family, where the inputs leave a choice.

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

    @classmethod
    def from_yaml(cls, source: str | Path) -> Recipe:
        """Read a recipe from YAML text, or from a file given as a ``Path``.

        Raises:
            LazyMoEError: with every mistake found, each naming its field.
        """
        where = str(source) if isinstance(source, Path) else "recipe"
        if isinstance(source, Path):
            try:
                source = source.expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                reason = e.strerror if isinstance(e, OSError) else "it is not a UTF-8 text file"
                raise error(where, f"the recipe can't be read: {reason}", "Check the path.") from None
        try:
            data = yaml.safe_load(source)
        except (yaml.YAMLError, RecursionError) as e:
            mark = getattr(e, "problem_mark", None)
            place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
            what = f"this isn't valid YAML: {getattr(e, 'problem', None) or 'it can not be parsed'}"
            raise error(place, what, "Check indentation, colons and quotes there.") from None
        if not isinstance(data, dict):
            raise error(where, "a recipe is a list of 'key: value' lines", "Begin with 'base_model: ...'.")
        try:
            return cls.model_validate(data)
        except ValidationError as e:
            raise LazyMoEError(_explain(err, data) for err in e.errors()) from None

    def to_yaml(self) -> str:
        """The recipe as YAML that `from_yaml` reads back equal; fields left at their default are left out."""
        data = self.model_dump(exclude_unset=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)

    def models(self) -> list[tuple[str, str]]:
        """Every model of the recipe with its place: ``[(place, reference)]``, the base model first."""
        experts = [(self.place(i, "source_model"), e.source_model) for i, e in enumerate(self.every_expert)]
        return [("base_model", self.base_model), *experts]

    @property
    def every_expert(self) -> list[Expert]:
        """The experts, then the shared ones."""
        return [*self.experts, *(self.shared_experts or [])]

    def with_experts(self, every: list[Expert]) -> Recipe:
        """The recipe with others in place of `every_expert`."""
        n = len(self.experts)
        return self.model_copy(
            update={"experts": every[:n], **({"shared_experts": every[n:]} if self.shared_experts else {})}
        )

    def place(self, expert: int, field: str) -> str:
        """How messages name a field of one of `every_expert`, by its number (from 0)."""
        n = len(self.experts)
        loc = ("experts", expert, field) if expert < n else ("shared_experts", expert - n, field)
        return _place(loc, n)


def _place(loc: tuple[int | str, ...], experts: int) -> str:
    loc = tuple(part for part in loc if part not in ("written", "texts"))  # which kind of prompt pydantic took it for
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    counted = len(loc) > 1 and loc[0] == "experts" and experts > 1
    return f"{path} (expert {int(loc[1]) + 1} of {experts})" if counted else path


def _explain(err: Any, data: dict[str, Any]) -> Problem:
    """One of pydantic's errors in words for someone who has never heard of pydantic."""
    experts = data.get("experts")
    loc, kind, given = err["loc"], err["type"], err["input"]
    where = _place(loc, len(experts) if isinstance(experts, list) else 0)
    key = str(loc[-1])
    if kind == "extra_forbidden":
        model = Texts if "texts" in loc else Expert if len(loc) > 1 else Recipe
        return Problem(where, f"there is no field '{key}'", nearest(key, model.model_fields))
    if kind == "missing":
        example = "your-name/your-model" if key != "experts" else "[{source_model: your-name/your-model}]"
        return Problem(where, "this field is missing", f"Add '{key}: {example}'.")
    if kind == "literal_error":
        known = get_args({"gate_mode": GateMode, "shared_weights": SharedWeights}.get(key, DType))
        return Problem(where, f"{given!r} isn't a {key}", f"Use one of: {', '.join(known)}.")
    if kind == "list_type":
        return Problem(where, "this must be a list", "Put each entry on a line of its own that begins with '- '.")
    if kind == "string_type":
        return Problem(where, f"this must be text, but YAML reads it as {type(given).__name__}", "Put it in quotes.")
    if kind == "too_short":
        return Problem(where, "there is no expert in this list", "Add at least one '- source_model: ...'.")
    if kind == "string_too_short":
        return Problem(where, "this is empty", "Name a model: a folder or a Hub id such as 'org/name'.")
    if kind in ("model_type", "model_attributes_type"):
        return Problem(where, "an expert is a group of 'key: value' lines", "Begin it with '- source_model: ...'.")
    if kind == "value_error":
        return Problem(where, str(err["ctx"]["error"]), "Add 'file: texts.jsonl' or 'dataset: org/name'.")
    return Problem(where, f"{err['msg'][0].lower()}{err['msg'][1:]}, not {given!r}", "Correct the value.")
