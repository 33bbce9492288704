"""What looks like a token of the Hugging Face Hub, which must not be kept in a file, let alone published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from lazymoe.errors import TOKEN as TOKEN

WHAT = "this looks like a Hugging Face token"  # which is never repeated
REMEDY = "Take it out. If others may have seen it, revoke it on the Hub's settings page."


def find_token(data: Any) -> tuple[int | str, ...] | None:
    """Find a text in some data, at any depth, that looks like a token.

    Args:
        data: lists and mappings, texts and numbers, as YAML gives them; aliases may make them of any size.

    Returns:
        The place: the keys that lead there; None if there is no such text.
    """
    left: list[tuple[tuple[int | str, ...], Any]] = [((), data)]
    seen = set()
    while left:
        place, value = left.pop()
        if isinstance(value, str):
            if TOKEN.search(value):
                return place
            continue
        if isinstance(value, BaseModel):
            value = dict(value)
        if not isinstance(value, (Mapping, list, tuple, set)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            if any(TOKEN.search(str(key)) for key in value if isinstance(key, (str, bytes))):
                return place
            left += [((*place, str(key)), inner) for key, inner in value.items()]
        else:
            left += [((*place, i), inner) for i, inner in enumerate(value)]
    return None
