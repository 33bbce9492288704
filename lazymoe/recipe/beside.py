"""The texts of a recipe's files of prompts, in files of their own that lie beside the recipe of a mixture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from lazymoe.recipe.schema import SIDES, Recipe, Texts

NAME = re.compile(r"prompts-[0-9]+\.jsonl")


def put_beside(recipe: Recipe, taken: Mapping[Texts, list[str]]) -> tuple[Recipe, dict[str, bytes]]:
    """Put the texts of files into files of their own, which go where the recipe goes.

    Args:
        recipe: that names the files as they were given.
        taken: the texts that were taken of each, as `texts.read_prompts` gives them.

    Returns:
        The recipe with the new files in their place, and these: name to contents.
    """
    files: dict[str, bytes] = {}
    names: dict[Texts, Texts] = {}
    for i, (given, texts) in enumerate(taken.items(), 1):
        names[given] = Texts(file=f"prompts-{i}.jsonl", limit=len(texts))
        files[f"prompts-{i}.jsonl"] = "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts).encode()

    def renamed(prompt: str | Texts) -> str | Texts:
        return names.get(prompt, prompt) if isinstance(prompt, Texts) else prompt

    experts = []
    for expert in recipe.every_expert:
        sides = {side: getattr(expert, side) for side in SIDES if getattr(expert, side)}
        experts.append(expert.model_copy(update={side: list(map(renamed, found)) for side, found in sides.items()}))
    return recipe.with_experts(experts), files


def files_of(recipe: Recipe) -> list[str]:
    """List the files of texts on this machine that a recipe names.

    Args:
        recipe: as it was given.
    """
    prompts = [prompt for expert in recipe.every_expert for side in SIDES for prompt in getattr(expert, side) or ()]
    files = [prompt.file for prompt in prompts if isinstance(prompt, Texts) and not prompt.dataset]
    return list(dict.fromkeys(filter(None, files)))


def files_beside(recipe: Recipe) -> list[str]:
    """List the files of texts that lie beside the recipe of a mixture.

    Args:
        recipe: the mixture's own.
    """
    return [name for name in files_of(recipe) if NAME.fullmatch(name)]


def along(files: Sequence[str]) -> list[str]:
    """Say whose texts a mixture carries; nothing if there are none.

    Args:
        files: that a recipe names.
    """
    return [f"The texts of {', '.join(files)} go along with the mixture's recipe, onto the Hub too."] if files else []
