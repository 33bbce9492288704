"""What pydantic finds in a recipe, in words for someone who has never heard of pydantic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lazymoe.errors import Problem, nearest
from lazymoe.recipe.mergekit import meant

Loc = tuple[int | str, ...]  # a place in a recipe, as pydantic gives it


def explain(
    invalid: ValidationError,
    data: Mapping[str, Any],
    fields: Callable[[Loc], Sequence[str]],
    literals: Mapping[str, Sequence[str]],
) -> list[Problem]:
    """Name every mistake in a recipe, each once: a field that is missing because its name was mistyped is one mistake.

    Args:
        invalid: what pydantic found.
        data: the recipe as it was given.
        fields: what fields there are at a place.
        literals: fields that take only certain words, and which.
    """
    found: list[Any] = invalid.errors()
    unknown = [e["loc"] for e in found if e["type"] == "extra_forbidden"]
    mistyped = {(*loc[:-1], meant(str(loc[-1]), fields(loc))) for loc in unknown}
    experts = data.get("experts")
    n = len(experts) if isinstance(experts, list) else 0
    alike: dict[object, list[Problem]] = {}  # entries of one list with the same mistake make one line
    for e in found:
        if e["type"] != "missing" or e["loc"] not in mistyped:
            problem = _explain(e, place(e["loc"], n), fields, literals)
            loc = _plain(e["loc"])
            alike.setdefault((loc[:-1] if isinstance(loc[-1], int) else loc, problem.what), []).append(problem)
    return [
        replace(first, what=f"{first.what} (so too {len(more)} more of this list)") if more else first
        for first, *more in alike.values()
    ]


def place(loc: Loc, experts: int) -> str:
    """Spell a place in a recipe of so many experts: ``experts[1].source_model (expert 2 of 4)``.

    Args:
        loc: the place, as pydantic gives it.
        experts: how many experts the recipe has, without shared ones.
    """
    loc = _plain(loc)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    counted = len(loc) > 1 and loc[0] == "experts" and experts > 1
    return f"{path} (expert {int(loc[1]) + 1} of {experts})" if counted else path


def _plain(loc: Loc) -> Loc:
    """Leave out which kind of prompt pydantic took it for."""
    return tuple(part for part in loc if part not in ("written", "texts"))


def _explain(
    e: Any, where: str, fields: Callable[[Loc], Sequence[str]], literals: Mapping[str, Sequence[str]]
) -> Problem:
    kind, given, key = e["type"], e["input"], str(e["loc"][-1])
    if kind == "extra_forbidden":
        near = meant(key, fields(e["loc"]))
        remedy = f"Did you mean '{near}'?" if near else nearest(key, fields(e["loc"]))
        return Problem("recipe.unknown-field", where, f"there is no field '{key}'", remedy)
    if kind == "missing":
        example = "your-name/your-model" if key != "experts" else "[{source_model: your-name/your-model}]"
        return Problem("recipe.missing-field", where, "this field is missing", f"Add '{key}: {example}'.")
    if kind == "literal_error":
        known = ", ".join(literals[key])
        return Problem("recipe.unknown-value", where, f"{_shown(given)} isn't a {key}", f"Use one of: {known}.")
    if kind == "unquoted":
        what = "YAML reads this prompt as a mapping, since it has ': ' in it"
        return Problem("recipe.wrong-type", where, what, f"Put it in quotes: {e['ctx']['text']}")
    if kind == "reference":
        what = f"a model can't be named by this mapping: {e['msg']}"
        remedy = "Write 'org/name@revision+org/adapter', or {model: {path, revision}, lora: {path, revision}}."
        return Problem("recipe.wrong-value", where, what, remedy)
    if kind == "list_type":
        remedy = "Put each entry on a line of its own that begins with '- '."
        return Problem("recipe.wrong-type", where, "this must be a list", remedy)
    if kind == "string_type":
        what = f"this must be text, but YAML reads it as {type(given).__name__}"
        remedy = "Write one text there." if isinstance(given, list) else "Put it in quotes."
        return Problem("recipe.wrong-type", where, what, remedy)
    if kind == "half":
        what = "it has half of a pair of surrogates, which is no character"
        return Problem("recipe.wrong-value", where, what, "Write the character itself.")
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
    what = f"{e['msg'][0].lower()}{e['msg'][1:]}, not {_shown(given)}"
    return Problem("recipe.wrong-value", where, what, "Correct the value.")


def _shown(given: Any) -> str:
    """Show a value; a list or a mapping by its kind only, for aliases can make it of any size."""
    return "a list" if isinstance(given, list) else "a mapping" if isinstance(given, dict) else repr(given)
