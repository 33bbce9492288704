"""The way to merge: models on the Hub are downloaded or read there; the mixture stays here or goes straight there, from
here or from a rented machine."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from lazymoe.notebook import ui
from lazymoe.notebook.session import NO_TOKEN, SESSION, Place
from lazymoe.planning.prepared import Where
from lazymoe.planning.ways import Way

SOURCES: dict[Where, str] = {
    "auto": "Whichever fits",
    "local": "Download them",
    "remote": "Read them where they are",
}
PLACES: dict[Place, str] = {
    "here": "Into a folder here",
    "hub": "Straight to the Hub",
    "rented": "To the Hub, on a rented machine",
}
SPARING = (
    "Each file of weights goes up while it and the next are made, and leaves this disk. Measuring and the chat need "
    "the mixture in a folder."
)
RENTED = (
    "Hugging Face Jobs rents it by the minute. You are told the price first, and nothing starts before you press again."
    " It goes on without this notebook; a job that runs already is found again."
)
CHEAPEST = "the cheapest that is large enough; or a name, such as t4-small for a GPU"
ABOUT: dict[Place, str] = {"here": "", "hub": SPARING, "rented": RENTED}
PLACE: dict[bool, Place] = {False: "here", True: "hub"}  # of a way that is gone here


class Name(w.Text):
    """The name of a repository on the Hub, suggested until it is typed."""

    value: str

    def __init__(self, **options: Any) -> None:
        """Show it.

        Args:
            options: of the widget.
        """
        self._suggested = ""
        super().__init__(placeholder="your-name/your-model", **options)

    def suggest(self, name: str) -> None:
        """Suggest a name, unless the user has given one.

        Args:
            name: the name.
        """
        if self.value == self._suggested:
            self.value = self._suggested = name


class Repository(w.VBox):
    """The name of a repository on the Hub, and whether others may see it."""

    def __init__(self, name: str, ending: str = "") -> None:
        """Show it.

        Args:
            name: of its class, by which tests find it.
            ending: of the name that is suggested.
        """
        self._ending = ending
        self._name = ui.field(Name, "Repository", name)
        self._private = w.Checkbox(description="Private: only you can see it", indent=False)
        super().__init__([self._name, self._private])

    @property
    def fields(self) -> dict[str, w.Widget]:
        """Its fields by name."""
        return {"repo": self._name, "private": self._private}

    @property
    def name(self) -> str:
        return str(self._name.value.strip())

    @property
    def private(self) -> bool:
        return bool(self._private.value)

    def suggest(self) -> None:
        """Suggest a name, unless the user has given one."""
        if SESSION.account:
            self._name.suggest(f"{SESSION.account.name}/{SESSION.name}{self._ending}")


class Destination(w.VBox):
    """The choice, of where models on the Hub are read and of where the mixture goes.

    Attributes:
        repository: on the Hub.
        machine: the field that names a rented machine.
    """

    def __init__(self) -> None:
        self.repository, self._told = Repository("straight-repo"), ui.Messages()
        self._source = _radio("source", {words: source for source, words in SOURCES.items()})
        self._place = _radio("way", {words: place for place, words in PLACES.items()})
        self.machine = _machine()
        self._form = w.VBox([self._told, self.repository, self.machine])
        choices = [_titled("Models on the Hub", self._source), _titled("The mixture", self._place)]
        super().__init__([w.HBox(choices, layout=w.Layout(flex_flow="row wrap", grid_gap="0 32px")), self._form])
        self._source.observe(lambda change: SESSION.change(source=change["new"]), "value")
        self._place.observe(lambda change: SESSION.change(place=change["new"]), "value")

    @property
    def is_ready(self) -> bool:
        """Whether the chosen way can be gone: to the Hub with a token only."""
        return not SESSION.to_hub or SESSION.account is not None

    def hear(self) -> None:
        """Show what fits the session's state."""
        self._source.value, self._place.value = SESSION.source, SESSION.place
        self.repository.suggest()
        self._form.layout.display = None if SESSION.to_hub else "none"
        self.machine.layout.display = None if SESSION.place == "rented" else "none"
        along = SESSION.along if SESSION.to_hub else []
        self._told.show("note", ABOUT[SESSION.place], *along, *([] if self.is_ready else [NO_TOKEN]))


class Elsewhere(w.VBox):
    """The choice between this machine and a rented one, for a panel that has no other.

    Attributes:
        machine: the field that names a rented machine.
    """

    def __init__(self, panel: str) -> None:
        """Show it.

        Args:
            panel: whose it is, by which the session knows of the choice.
        """
        self._panel, self._told, self.machine = panel, ui.Messages(), _machine()
        self._choice = _radio(f"{panel}-machine", {"On this machine": False, "On a rented machine": True})
        super().__init__([self._choice, self._told, self.machine])
        self._told.show("note", RENTED)
        self._choice.value = self.chosen
        self._choice.observe(self._choose, "value")

    @property
    def chosen(self) -> bool:
        """Whether the rented machine is chosen."""
        return self._panel in SESSION.rented

    def _choose(self, change: dict[str, Any]) -> None:
        others = {name: form for name, form in SESSION.rented.items() if name != self._panel}
        SESSION.change(rented=others | ({self._panel: {}} if change["new"] else {}))

    def hear(self) -> None:
        """Show what fits the choice."""
        for widget in (self._told, self.machine):
            widget.layout.display = None if self.chosen else "none"


class Ways(w.VBox):
    """All ways side by side, with what each takes, and a button beside each that chooses it."""

    def hear(self) -> None:
        """Show what fits the session's state: nothing before a check."""
        ways, chosen = SESSION.found.ways if SESSION.found else (), SESSION.way
        self.children = [_row(way, way is chosen) for way in ways]


def _row(way: Way, is_chosen: bool) -> w.HBox:
    label, goes = "✓ Chosen" if is_chosen else "Choose", PLACE[way.to_hub]
    start = ui.button(label, "choose", lambda: SESSION.change(source=way.source, place=goes), width="100px")
    start.disabled = is_chosen or not way.fits
    come = {"local": "Download the models, merge", "remote": "Read the models where they are, merge"}[way.source]
    place = {False: "into a folder here", True: "straight to the Hub"}[way.to_hub]
    title = f"{come if way.brought else 'Merge'} {place}"
    cells = "".join(f"<div><small>{name}</small>{words or '-'}</div>" for name, words in way.figures().items())
    row = w.HBox([start, w.HTML(f"<b>{title}</b><div class='lazymoe-figures'>{cells}</div>")])
    row.add_class("lazymoe-one-way")
    if is_chosen:
        row.add_class("lazymoe-chosen")
    return row


def _machine() -> Any:
    return ui.field(w.Text, "Machine", placeholder=CHEAPEST)


def _radio(name: str, options: dict[str, object]) -> w.RadioButtons:
    radio = w.RadioButtons(options=list(options.items()), layout=w.Layout(width="auto"))
    radio.add_class(f"lazymoe-{name}")
    return radio


def _titled(title: str, widget: w.Widget) -> w.VBox:
    return w.VBox([w.HTML(f"<h5>{title}</h5>"), widget])
