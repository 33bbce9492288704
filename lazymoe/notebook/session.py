"""What the panels know together: the recipe, where the mixture goes, and who wants to hear of a change.

Kept in a file of the working folder, so that a restarted kernel finds it again. A token is never part of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from lazymoe.errors import LazyMoEError
from lazymoe.files import write_whole
from lazymoe.output.folder import is_finished
from lazymoe.planning.prepared import Prepared, prepare
from lazymoe.recipe.schema import Recipe

FILE = ".lazymoe-notebook.json"
MISTAKES = "The recipe has mistakes. They are marked in step 2."  # what panels say that wait for an earlier step
NO_RECIPE = "Waiting for a recipe without mistakes, from step 2."
NO_MIXTURE = "Waiting for step 4."


class Session:
    """The state of one notebook.

    Attributes:
        yaml: the recipe as the form has it, right or wrong.
        allow_pickle: whether ``.bin`` weights are taken.
        name: of the output folder, in the working folder.
    """

    def __init__(self) -> None:
        self.yaml, self.name, self.allow_pickle = "", "my-moe", False
        self._listeners: dict[str, Callable[[], None]] = {}
        file = Path(FILE)
        if file.exists():
            try:
                saved = json.loads(file.read_text())
                self.yaml, self.name = str(saved["yaml"]), str(saved["name"])
                self.allow_pickle = bool(saved.get("allow_pickle"))
            except (OSError, ValueError, KeyError, TypeError):
                pass  # half-written by something else: begin anew

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, if it is one."""
        return _parse(self.yaml)

    @property
    def out(self) -> Path:
        return Path.cwd() / self.name

    @property
    def merged(self) -> Path | None:
        """The folder of the mixture, once it is there."""
        return self.out if is_finished(self.out) else None

    def listen(self, panel: str, hear: Callable[[], None]) -> None:
        """Call a function now and at each change; one for each panel, so that a cell can be run again.

        Args:
            panel: whose function it is.
            hear: the function.
        """
        self._listeners[panel] = hear
        hear()

    def prepare(self, recipe: Recipe) -> Prepared:
        """Make a recipe ready, by the options of this notebook.

        Args:
            recipe: what is wanted.
        """
        return prepare(recipe, allow_pickle=self.allow_pickle)

    def change(self, yaml: str | None = None, name: str | None = None, allow_pickle: bool | None = None) -> None:
        """Keep what is new, and tell everyone.

        Args:
            yaml, name, allow_pickle: the new values, see `Session`; None for what stays.
        """
        self.yaml = self.yaml if yaml is None else yaml
        self.name = self.name if name is None else name
        self.allow_pickle = self.allow_pickle if allow_pickle is None else allow_pickle
        kept = {"yaml": self.yaml, "name": self.name, "allow_pickle": self.allow_pickle}
        write_whole(Path(FILE), json.dumps(kept))
        for hear in list(self._listeners.values()):
            hear()


@lru_cache(maxsize=1)
def _parse(yaml: str) -> Recipe | None:
    """Read the recipe, if it is one, and keep the last: several panels ask at each key."""
    try:
        return Recipe.from_yaml(yaml)
    except LazyMoEError:
        return None


SESSION = Session()
