"""What the panels know together: the recipe, where the mixture goes, and who wants to hear of a change.

Kept in a file of the working folder, so that a restarted kernel finds it again. A token is never part of it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from lazymoe.errors import LazyMoEError
from lazymoe.files import write_whole
from lazymoe.hub.accounts import Account
from lazymoe.output.folder import EVALUATION, RECORD, REPORT, is_finished
from lazymoe.planning.checking import Check
from lazymoe.planning.prepared import Prepared, Where, prepare
from lazymoe.planning.ways import Way, among, choose
from lazymoe.recipe.beside import along, files_of
from lazymoe.recipe.schema import Recipe

FILE = ".lazymoe-notebook.json"
Place = Literal["here", "hub", "rented"]  # where a mixture is made: into a folder, straight to the Hub, and elsewhere
MISTAKES = "The recipe has mistakes. They are marked in step 2."  # what panels say that wait for an earlier step
NO_RECIPE = "Waiting for a recipe without mistakes, from step 2."
NO_MIXTURE = "Waiting for step 4."
NO_TOKEN = "Waiting for a token with write access, in step 1."
NO_ROOM = "This doesn't fit in the way that is chosen. Another one in step 3 does."
OLDER = "This is the mixture of an older recipe: the one in step 2 has changed since."


class Session:
    """The state of one notebook.

    Attributes:
        yaml: the recipe as the form has it, right or wrong.
        allow_pickle: whether ``.bin`` weights are taken.
        name: of the output folder, in the working folder.
        source: where the weights of models on the Hub are read, as `merge` takes it.
        place: where the mixture is made.
        rented: what panels that use a rented machine have last asked of it, by name: the values of their fields.
        sent: the repository that a mixture has last gone to.
        made: of each mixture that was made here, by the name of its folder, the recipe and what was doubtful.
        account: whose token it is, once there is one.
        checked: the recipe that was last checked, and what was found.
    """

    def __init__(self) -> None:
        self.yaml, self.name, self.allow_pickle = "", "my-moe", False
        self.source: Where = "auto"
        self.place: Place = "here"
        self.rented: dict[str, dict[str, Any]] = {}
        self.sent = ""
        self.made: dict[str, tuple[str, list[str]]] = {}
        self.account: Account | None = None
        self.checked: tuple[str, Check] | None = None
        self._listeners: dict[str, Callable[[], None]] = {}
        file = Path(FILE)
        if file.exists():
            try:
                saved = json.loads(file.read_text())
                self.yaml, self.name = str(saved["yaml"]), str(saved["name"])
                self.allow_pickle = bool(saved.get("allow_pickle"))
                self.source = next((w for w in get_args(Where) if w == saved.get("source")), "auto")
                self.place = next((p for p in get_args(Place) if p == saved.get("place")), "here")
                self.made = {name: (str(yaml), list(map(str, told))) for name, (yaml, told) in saved["made"].items()}
                self.sent = str(saved.get("sent", ""))
                self.rented = {name: dict(form) for name, form in saved.get("rented", {}).items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass  # half-written by something else, or of an older version: begin anew

    @property
    def recipe(self) -> Recipe | None:
        """The recipe, if it is one."""
        return _parse(self.yaml)

    @property
    def along(self) -> list[str]:
        """What is to be said of texts in files that go onto the Hub with the form's recipe, if there are some."""
        return along(files_of(self.recipe)) if self.recipe else []

    @property
    def to_hub(self) -> bool:
        """Whether the mixture goes straight to the Hub."""
        return self.place != "here"

    @property
    def out(self) -> Path:
        return Path.cwd() / self.name

    @property
    def merged(self) -> Path | None:
        """The folder of the mixture, once it is there."""
        return self.out if is_finished(self.out) else None

    @property
    def mixture(self) -> tuple[Path, int] | None:
        """What tells the mixture that is there from any other: its folder, and when it was finished."""
        return (self.out, (self.out / RECORD).stat().st_mtime_ns) if self.merged else None

    @property
    def measured(self) -> tuple[int, ...]:
        """When the mixture that is there was measured and evaluated, 0 for what it wasn't."""
        found = (self.out / REPORT, self.out / EVALUATION)
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in found)

    @property
    def is_older(self) -> bool:
        """Whether the mixture was made of another recipe than the form's."""
        made = self.made.get(self.name)
        return bool(self.merged and made and _parse(made[0]) != self.recipe)

    @property
    def free_name(self) -> str:
        """A name like the output's that no folder has yet."""
        stem = re.sub(r"-\d+$", "", self.name)
        return next(name for i in itertools.count(2) if not (Path.cwd() / (name := f"{stem}-{i}")).exists())

    @property
    def found(self) -> Check | None:
        """What was found of the form's recipe, if it was checked."""
        return self.checked[1] if self.checked and self.checked[0] == self.yaml else None

    @property
    def way(self) -> Way | None:
        """The way that a merge here would take; None before a check, or if nothing that is chosen fits."""
        ways = self.found.ways if self.found and self.place != "rented" else ()
        return choose(among(ways, self.source, self.to_hub))

    @property
    def has_no_room(self) -> bool:
        """Whether the form's recipe fits, but not in the way that is chosen."""
        return bool(self.place != "rented" and self.found and not self.found.errors and not self.way)

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

    def finish(self, name: str, yaml: str, told: list[str]) -> None:
        """Keep what a mixture was made of, and tell everyone.

        Args:
            name: of its folder.
            yaml: its recipe.
            told: what is doubtful about it.
        """
        self.made[name] = yaml, told
        self.change()

    def change(
        self,
        yaml: str | None = None,
        name: str | None = None,
        allow_pickle: bool | None = None,
        source: Where | None = None,
        place: Place | None = None,
        rented: dict[str, dict[str, Any]] | None = None,
        sent: str | None = None,
    ) -> None:
        """Keep what is new, and tell everyone.

        Args:
            yaml, name, allow_pickle, source, place, rented, sent: the new values, see `Session`; None for what stays.
        """
        self.yaml = self.yaml if yaml is None else yaml
        self.name = self.name if name is None else name
        self.allow_pickle = self.allow_pickle if allow_pickle is None else allow_pickle
        self.source = self.source if source is None else source
        self.place = self.place if place is None else place
        self.rented = self.rented if rented is None else rented
        self.sent = self.sent if sent is None else sent
        keys = ("yaml", "name", "allow_pickle", "source", "place", "rented", "sent", "made")
        kept = {key: getattr(self, key) for key in keys}
        write_whole(Path(FILE), json.dumps(kept))
        for hear in list(self._listeners.values()):
            hear()


@lru_cache(maxsize=4)
def _parse(yaml: str) -> Recipe | None:
    """Read a recipe, if it is one, and keep the last: several panels ask at each key."""
    try:
        return Recipe.from_yaml(yaml)
    except LazyMoEError:
        return None


SESSION = Session()
