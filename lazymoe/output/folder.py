"""A mixture's folder: the names of its files, what makes it finished, and what it says of itself.

Everything half-made lies in ``.lazymoe`` or lacks a config.json, so it can't be taken for a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import HOSTS, host_of
from lazymoe.checkpoint.source import TOKENIZER_FILES
from lazymoe.data import folder as data
from lazymoe.errors import error
from lazymoe.planning.plan import WORK as WORK
from lazymoe.recipe.schema import Recipe

RECORD = "lazymoe.json"  # what a complete output says of itself
RECIPE = "recipe.yaml"
CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model-*.safetensors"
CARD = "README.md"
REPORT = "report.json"
PICTURE = "routing.png"
PICTURES = {PICTURE: False, "routing-dark.png": True}  # name to whether it is for a dark page
CODE = tuple(host.code for host in HOSTS if host.code)  # LazyMoE's own modelling code
SMALL = (CONFIG, GENERATION, INDEX, *TOKENIZER_FILES, *CODE, RECIPE, RECORD, REPORT, *PICTURES)  # that is published


@dataclass(frozen=True)
class Finished:
    """What a finished mixture's folder says of it.

    Attributes:
        folder: where it is.
        recipe: with revisions pinned to commits.
        record: of the merge: versions, seed, sizes, the sources' licences.
        config: its config.json.
        report: its report.json; empty if it wasn't measured.
        chats: whether its tokenizer has a chat template.
    """

    folder: Path
    recipe: Recipe
    record: dict[str, Any]
    config: dict[str, Any]
    report: dict[str, Any]
    chats: bool

    @property
    def host(self) -> Host:
        """The record of its architecture.

        Raises:
            OutputError: if it is none of LazyMoE's.
        """
        host = host_of(self.config.get("model_type"))
        if host is None:
            what = f"its config.json says '{self.config.get('model_type')}', which LazyMoE doesn't make"
            raise error("output.damaged", self.folder, what, "Delete it, and merge again.")
        return host

    @property
    def weights(self) -> list[Path]:
        """The files of weights that its index names.

        Raises:
            OutputError: if one of them isn't there.
        """
        index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        weights = [self.folder / name for name in sorted(set(index["weight_map"].values()))]
        if lost := [path.name for path in weights if not path.is_file()]:
            raise error("output.damaged", self.folder, f"it lacks {lost[0]}", "Delete it, and merge again.")
        return weights

    @property
    def small(self) -> list[Path]:
        """Its other files, those that a model on the Hub has."""
        return list(dict.fromkeys(p for name in SMALL for p in sorted(self.folder.glob(name)) if p.is_file()))


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds a finished mixture.

    Args:
        folder: the folder.
    """
    return all((folder / name).is_file() for name in (RECORD, RECIPE, CONFIG))


def open_finished(folder: Path) -> Finished:
    """Read what a finished mixture says of itself.

    Args:
        folder: the mixture's, absolute.

    Raises:
        OutputError: if the folder isn't one, or its files can't be read.
        RecipeError: if the recipe in it can't be read.
    """
    if not is_finished(folder):
        what = "this isn't a finished mixture"
        raise error("output.unfinished", folder, what, "Name a folder that 'lazymoe merge' has completed.")
    try:
        record, config, tokenizer, report = (
            json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for file in (folder / name for name in (RECORD, CONFIG, "tokenizer_config.json", REPORT))
        )
        chats = (folder / "chat_template.jinja").is_file() or bool(tokenizer.get("chat_template"))
        return Finished(folder, Recipe.from_file(folder / RECIPE), record, config, report, chats)
    except (OSError, ValueError, AttributeError) as e:
        what = f"its files can't be read ({e})"
        raise error("output.damaged", folder, what, "Delete it, and merge again.") from None


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report that lies beside a mixture; empty if there is none that can be read.

    Args:
        folder: the mixture's.
    """
    try:
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def trusted(folder: Path) -> bool:
    """Tell whether the modelling code that a mixture's config.json names is LazyMoE's own, to the byte.

    Only then it may run.

    Args:
        folder: the mixture's.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    host = host_of(config.get("model_type"))
    if not host or not host.code or not (folder / host.code).is_file():
        return False
    named = [str(name).startswith(f"{Path(host.code).stem}.") for name in config.get("auto_map", {}).values()]
    return all(named) and (folder / host.code).read_bytes() == (data("templates") / host.code).read_bytes()
