"""What mergekit's parser takes that isn't in our fields: keys that it passes over, models named by a mapping."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from lazymoe.errors import Problem

DENSE = ("slices", "models", "merge_method")  # one of these makes a recipe one of mergekit's dense merges
FOREIGN = {  # keys that public recipes have, so not a slip, however near they are to one of ours
    *DENSE, "parameters", "tokenizer", "tokenizer_source", "chat_template", "out_dtype", "modules", "num_experts",
    "name", "license", "language", "tags", "type", "date", "weight", "sources", "model_type", "architectures",
    "base_model_relation",
}  # fmt: skip
REFERENCE, PATH = ("model", "lora", "override_architecture"), ("path", "revision")
LISTED = 8  # names of keys in one message


def meant(key: str, fields: Sequence[str]) -> str | None:
    """Find the field that was probably meant by a key; None if the key is rather one for another program.

    Args:
        key: as it was given.
        fields: what fields there are.
    """
    close = [] if key in FOREIGN else difflib.get_close_matches(key.lower().replace("-", "_"), fields, 1)
    return close[0] if close else None


def is_dense(data: Mapping[str, Any], fields: Sequence[str]) -> bool:
    """Whether a recipe is one for mergekit's dense merges.

    Args:
        data: the recipe as it was given.
        fields: those of a mixture's recipe.
    """
    return any(key in data for key in DENSE) and not any("experts" in (key, meant(key, fields)) for key in data)


def sift(
    data: Mapping[Any, Any], fields: Sequence[str], inner: Sequence[str] = (), where: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Leave out the keys that mergekit would pass over; those that are near to one of ours stay, for they are slips.

    Args:
        data: the recipe as it was given, or an expert of it.
        fields: what fields there are.
        inner: those of an expert, if there are experts in it.
        where: the path to it.

    Returns:
        What is left, and the paths of the keys that were left out.
    """
    left: dict[str, Any] = {}
    passed: list[str] = []
    for key, value in ((str(key), value) for key, value in data.items()):
        if key not in fields and not meant(key, fields):
            passed.append(f"{where}{key}")
        elif inner and key in ("experts", "shared_experts") and isinstance(value, list):
            left[key] = []
            for i, expert in enumerate(value):
                if isinstance(expert, Mapping):
                    expert, more = sift(expert, inner, where=f"{where}{key}[{i}].")
                    passed += more
                left[key].append(expert)
        else:
            left[key] = value
            if isinstance(value, Mapping) and value.get(REFERENCE[-1]):
                passed.append(f"{where}{key}.{REFERENCE[-1]}")
    return left, passed


def passed_over(paths: Sequence[str]) -> Problem:
    """Say which keys of a recipe are passed over.

    Args:
        paths: to them, at least one.
    """
    more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
    what = "ignored, as in mergekit-moe, since a mixture's recipe has no such field"
    remedy = "Take it out, or leave it: the result is the same."
    return Problem("recipe.passed-over", ", ".join(paths[:LISTED]) + more, what, remedy)


def spell_reference(given: Any) -> Any:
    """Spell a model that is named by a mapping, ``{model: {path, revision}, lora: {path, revision}}``, as text.

    Args:
        given: the mapping; anything else is given back as it is.

    Raises:
        PydanticCustomError: if it isn't such a mapping.
    """
    if not isinstance(given, Mapping):
        return given
    _known(given, REFERENCE)
    if not given.get("model"):
        raise PydanticCustomError("reference", "it names no 'model'")
    adapter = given.get("lora")
    return _spell_path(given["model"]) + (f"+{_spell_path(adapter)}" if adapter else "")


def _spell_path(given: Any) -> str:
    if isinstance(given, Mapping):
        _known(given, PATH)
        path, revision = given.get("path"), given.get("revision")
        if path and isinstance(path, str) and isinstance(revision, str | None):
            return f"{path}@{revision}" if revision else path
    if given and isinstance(given, str):
        return given
    raise PydanticCustomError("reference", "its 'path' and 'revision' must be text")


def _known(given: Mapping[Any, Any], keys: Sequence[str]) -> None:
    """Refuse a mapping with other keys than these: a slip in one would give another model."""
    for key in map(str, given):
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise PydanticCustomError("reference", "it has a key '{key}'{hint}", {"key": key, "hint": hint})
