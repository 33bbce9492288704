"""Models and prompts by name on their way to the Hub: where something lay on one machine concerns nobody."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from lazymoe.recipe.reference import HUB_ID, Reference
from lazymoe.recipe.schema import Recipe, Texts

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # how a path begins there


def spell(reference: Reference) -> str:
    """Spell a model for people: without its commit, a folder by its name only.

    Args:
        reference: the model.
    """
    name = reference.model if _on_hub(reference) else _last(reference.model)
    return f"{name} + {spell(Reference.parse(reference.adapter))}" if reference.adapter else name


def without_places(recipe: Recipe) -> Recipe:
    """Copy a recipe with the names alone of folders and of files of prompts; what is on the Hub stays as it is.

    Args:
        recipe: as the folder of a finished mixture keeps it.
    """
    named = recipe.with_texts(_texts)
    experts = [e.model_copy(update={"source_model": _named(e.source_model)}) for e in named.every_expert]
    return named.with_experts(experts).with_fields(base_model=_named(recipe.base_model))


def _named(model: str) -> str:
    reference = Reference.parse(model)
    adapter = _named(reference.adapter) if reference.adapter else None
    if _on_hub(reference):
        return str(replace(reference, adapter=adapter))
    plain = _last(str(replace(reference, revision=None, adapter=None)))
    return str(Reference(plain, reference.revision, adapter))


def _texts(texts: Texts) -> Texts:
    if not texts.dataset:
        return texts.model_copy(update={"file": _last(texts.file or "")})
    name, at, revision = texts.dataset.partition("@")
    return texts if HUB_ID.fullmatch(name) else texts.model_copy(update={"dataset": f"{_last(name)}{at}{revision}"})


def _on_hub(reference: Reference) -> bool:
    """Tell whether a model is one of the Hub: in a finished mixture's recipe these have a commit."""
    return bool(reference.revision and HUB_ID.fullmatch(reference.model))


def _last(path: str) -> str:
    """Give the last part of a path of this machine, or of whichever the mixture was made on."""
    kind = PureWindowsPath if os.name == "nt" or WINDOWS.match(path) else PurePosixPath
    name = kind(path).name
    return name if name not in ("", "..") else "folder"
