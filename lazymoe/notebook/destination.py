"""Where a mixture goes: into a folder here, or straight to the Hub, file by file, where no disk can hold it."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import NO_TOKEN, SESSION

HERE, STRAIGHT = "Into a folder here", "Straight to the Hub"
SPARING = (
    "Each file of weights goes up while the next one is made, and leaves this disk. Measuring, the chat and the "
    "picture of the routing need the mixture in a folder."
)


class Repository(w.VBox):
    """The name of a repository on the Hub, suggested until it is typed, and whether others may see it."""

    def __init__(self, name: str) -> None:
        """Show it.

        Args:
            name: of its class, by which tests find it.
        """
        self._suggested = ""
        self._name = ui.field(w.Text, "Repository", name, placeholder="your-name/your-model")
        self._private = w.Checkbox(description="Private: only you can see it", indent=False)
        super().__init__([self._name, self._private])

    @property
    def name(self) -> str:
        return str(self._name.value.strip())

    @property
    def private(self) -> bool:
        return bool(self._private.value)

    def suggest(self) -> None:
        """Suggest a name, unless the user has given one."""
        if SESSION.account and self._name.value == self._suggested:
            self._name.value = self._suggested = f"{SESSION.account.name}/{SESSION.name}"


class Destination(w.VBox):
    """The choice between the two ways.

    Attributes:
        repository: on the Hub.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Show it.

        Args:
            changed: called when another way is chosen.
        """
        self.repository, self._told = Repository("straight-repo"), ui.Messages()
        self._way = w.RadioButtons(options=[HERE, STRAIGHT], layout=w.Layout(width="auto"))
        self._way.add_class("lazymoe-way")
        self._form = w.VBox([self._told, self.repository])
        super().__init__([self._way, self._form])
        self._way.observe(lambda _: changed(), "value")

    @property
    def is_hub(self) -> bool:
        return bool(self._way.value == STRAIGHT)

    @property
    def is_ready(self) -> bool:
        """Whether the chosen way can be gone: to the Hub with a token only."""
        return not self.is_hub or SESSION.account is not None

    def hear(self) -> None:
        """Show what fits the session's state."""
        self.repository.suggest()
        self._form.layout.display = None if self.is_hub else "none"
        self._told.show("note", SPARING, *([] if self.is_ready else [NO_TOKEN]))
