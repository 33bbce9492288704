"""What pydantic finds in a recipe, in words for someone who has never heard of pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lazymoe.errors import Problem, nearest

Loc = tuple[int | str, ...]  # a place in a recipe, as pydantic gives it


def explain(
    invalid: ValidationError,
    data: Mapping[str, Any],
    fields: Callable[[Loc], Sequence[str]],
    literals: Mapping[str, Sequence[str]],
) -> list[Problem]:
    """Every mistake in a recipe, each once: a field that is missing because its name was mistyped is one mistake.

    Args:
        invalid: what pydantic found.
        data: the recipe as it was given.
        fields: what fields there are at a place.
        literals: fields that take only certain words, and which.
    """
    found: list[Any] = invalid.errors()
    unknown = [e["loc"] for e in found if e["type"] == "extra_forbidden"]
    meant = {(*loc[:-1], name) for loc in unknown for name in difflib.get_close_matches(str(loc[-1]), fields(loc), 1)}
    experts = data.get("experts")
    n = len(experts) if isinstance(experts, list) else 0
    return [
        _explain(e, place(e["loc"], n), fields, literals)
        for e in found
        if e["type"] != "missing" or e["loc"] not in meant
    ]


def place(loc: Loc, experts: int) -> str:
    """A place in a recipe of so many experts: ``experts[1].source_model (expert 2 of 4)``."""
    loc = tuple(part for part in loc if part not in ("written", "texts"))  # which kind of prompt pydantic took it for
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    counted = len(loc) > 1 and loc[0] == "experts" and experts > 1
    return f"{path} (expert {int(loc[1]) + 1} of {experts})" if counted else path


def _explain(
    e: Any, where: str, fields: Callable[[Loc], Sequence[str]], literals: Mapping[str, Sequence[str]]
) -> Problem:
    kind, given, key = e["type"], e["input"], str(e["loc"][-1])
    if kind == "extra_forbidden":
        remedy = nearest(key, fields(e["loc"]))
        return Problem("recipe.unknown-field", where, f"there is no field '{key}'", remedy)
    if kind == "missing":
        example = "your-name/your-model" if key != "experts" else "[{source_model: your-name/your-model}]"
        return Problem("recipe.missing-field", where, "this field is missing", f"Add '{key}: {example}'.")
    if kind == "literal_error":
        known = ", ".join(literals[key])
        return Problem("recipe.unknown-value", where, f"{given!r} isn't a {key}", f"Use one of: {known}.")
    if kind == "list_type":
        remedy = "Put each entry on a line of its own that begins with '- '."
        return Problem("recipe.wrong-type", where, "this must be a list", remedy)
    if kind == "string_type":
        what = f"this must be text, but YAML reads it as {type(given).__name__}"
        return Problem("recipe.wrong-type", where, what, "Put it in quotes.")
    if kind == "too_short":
        remedy = "Add at least one '- source_model: ...'."
        return Problem("recipe.no-experts", where, "there is no expert in this list", remedy)
    if kind == "string_too_short":
        remedy = "Name a model: a folder or a Hub id such as 'org/name'."
        return Problem("recipe.no-model", where, "this is empty", remedy)
    if kind in ("model_type", "model_attributes_type"):
        what = "an expert is a group of 'key: value' lines"
        return Problem("recipe.wrong-type", where, what, "Begin it with '- source_model: ...'.")
    if kind == "value_error":
        remedy = "Add 'file: texts.jsonl' or 'dataset: org/name'."
        return Problem("recipe.no-texts", where, str(e["ctx"]["error"]), remedy)
    what = f"{e['msg'][0].lower()}{e['msg'][1:]}, not {given!r}"
    return Problem("recipe.wrong-value", where, what, "Correct the value.")
