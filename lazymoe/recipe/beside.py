"""The texts of a recipe's files of prompts, in files of their own that lie beside the recipe of a mixture.

Only of files that lie in the recipe's own folder: what a recipe names elsewhere is not its own to carry along.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lazymoe.recipe.schema import Recipe, Texts
from lazymoe.recipe.texts import found_at

NAME = re.compile(r"prompts-[0-9]+\.jsonl")


def put_beside(recipe: Recipe, taken: Mapping[Texts, list[str]]) -> tuple[Recipe, dict[str, bytes]]:
    """Put the texts of files in the recipe's folder into files of their own, which go where the recipe goes.

    Args:
        recipe: that names the files as they were given.
        taken: the texts that were taken of each, as `texts.read_prompts` gives them.

    Returns:
        The recipe with the new files in their place, and these: name to contents.
    """
    files: dict[str, bytes] = {}
    names: dict[Texts, Texts] = {}
    own = {given: texts for given, texts in taken.items() if is_own(recipe, given.file or "")}
    for i, (given, texts) in enumerate(own.items(), 1):
        names[given] = Texts(file=f"prompts-{i}.jsonl", limit=len(texts))
        files[f"prompts-{i}.jsonl"] = "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts).encode()

    return recipe.with_texts(lambda given: names.get(given, given)), files


def is_own(recipe: Recipe, file: str) -> bool:
    """Tell whether a file of texts lies in the recipe's own folder; in the present one, if it came from none.

    Args:
        recipe: as it was given.
        file: that it names.
    """
    folder = recipe.origin.folder
    return found_at(file, folder).resolve().is_relative_to((folder or Path()).resolve())


def files_of(recipe: Recipe) -> list[str]:
    """List the files of texts on this machine that a recipe names.

    Args:
        recipe: as it was given.
    """
    files = [prompt.file for prompt in recipe.prompts if isinstance(prompt, Texts) and not prompt.dataset]
    return list(dict.fromkeys(filter(None, files)))


def own_files(recipe: Recipe) -> list[str]:
    """List those of them that lie in the recipe's own folder.

    Args:
        recipe: as it was given.
    """
    return [file for file in files_of(recipe) if is_own(recipe, file)]


def files_beside(recipe: Recipe) -> list[str]:
    """List the files of texts that lie beside the recipe of a mixture.

    Args:
        recipe: the mixture's own.
    """
    return [name for name in files_of(recipe) if NAME.fullmatch(name)]


def along(files: Sequence[str]) -> list[str]:
    """Say whose texts a mixture carries; nothing if there are none.

    Args:
        files: of texts, which the recipe names and which are its own.
    """
    return [f"The texts of {', '.join(files)} go along with the mixture's recipe, onto the Hub too."] if files else []
