"""Below step 7: GGUF in the types that are ticked, onto the Hub: the mixture, or the recipe on a rented machine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import ipywidgets as w
from packaging.requirements import Requirement

from lazymoe.errors import LazyMoEError
from lazymoe.exporting import sizes, to_gguf
from lazymoe.jobs.orders import gguf as order_gguf
from lazymoe.notebook import ui
from lazymoe.notebook.destination import Elsewhere, Repository
from lazymoe.notebook.installing import install
from lazymoe.notebook.rented import PRICE, Rented
from lazymoe.notebook.session import MISTAKES, NO_MIXTURE, NO_RECIPE, NO_TOKEN, SESSION
from lazymoe.notebook.verdict import is_bad
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import open_finished, read_report
from lazymoe.output.quantized import ENDING, Quality, is_quantized, kept_bytes, open_quantized
from lazymoe.publishing import Published
from lazymoe.publishing import publish as publish_model
from lazymoe.units import gigabytes

TYPES = {  # and what they cost where nothing was measured
    "Q8_0": "next to nothing",
    "Q6_K": "very little",
    "Q5_K_M": "little",
    "Q4_K_M": "some: what most people run",
    "Q3_K_M": "clearly something",
    "Q2_K": "a lot",
}
USUAL = "Q4_K_M"
CONTEXT = 4096  # tokens that memory is counted for
SPARE = 1_000_000_000  # bytes that a system and a runtime take beside a model
MACHINES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)  # gigabytes of memory that are sold
TICK = "Tick the types that you want, and press Publish as GGUF."


class Gguf(w.VBox):
    """The types with what they take and cost, where they are made, a repository, and one button."""

    def __init__(self, license: w.ValueWidget) -> None:
        """Show it.

        Args:
            license: the field with the licence that the user has chosen, if any.
        """
        self._license, self._sure = license, False
        self._shown: tuple[Path, int] | None = None  # the mixture whose sizes are shown
        self._problem: str | None = None  # why there can be none of it
        self.types = {kind: _tick(kind) for kind in TYPES}
        self.figures = {kind: w.HTML() for kind in TYPES}
        self.repository, self.elsewhere = Repository("gguf-repo", ENDING), Elsewhere("gguf")
        form = {**self.types, **self.repository.fields, "license": license}
        self.rented = Rented("gguf", "Publish as GGUF", self.elsewhere.machine, **form)
        self.told, self.bars, self.link = ui.Messages(), ui.Bars(), ui.Link()
        start = ui.button("Publish as GGUF", "gguf-button", lambda: self.work.begin(self._publish()), width="170px")
        again = "Press Publish as GGUF to go on from here."
        self.work = Work(start, "gguf", self.told, again, self.bars, self.rented.hear)
        rows = [w.HBox([self.types[kind], self.figures[kind]]) for kind in TYPES]
        title = w.HTML("<h4>As GGUF, for llama.cpp, Ollama and LM Studio</h4>")
        self._form = w.VBox([*rows, self.repository])
        shown = (self.elsewhere, self._form, self.work, self.bars, self.told, self.rented, self.link)
        super().__init__([title, *shown])
        self.add_class("lazymoe-gguf")

    def hear(self) -> None:
        """Show what fits the session's state."""
        if self.work.goes_on:
            return
        self.elsewhere.hear()
        self.repository.suggest()
        if self._shown != SESSION.mixture:
            self._shown, self._sure = SESSION.mixture, False
            self.link.show(None)
            self.bars.clear()
            self._problem = self._tell(SESSION.merged) if SESSION.merged else None
        rented = self.elsewhere.chosen
        problem, given = ("", SESSION.recipe) if rented else (self._problem, SESSION.merged)
        self.work.allow(bool(given and SESSION.account and not problem))
        self._form.layout.display = "none" if problem else None
        ready = " ".join([TICK, "It makes the recipe of step 2.", PRICE, *SESSION.along]) if rented else TICK
        waits = ready if SESSION.account else NO_TOKEN
        self.told.show("note", problem or (waits if given else NO_RECIPE if rented else NO_MIXTURE))

    def _tell(self, folder: Path) -> str | None:
        """Show what each type takes and costs; or say why there can be none."""
        if _lacking():
            return None  # it is installed when it is needed
        try:
            found = sizes(folder, tuple(TYPES))
        except LazyMoEError as e:
            return str(e)
        kept = kept_bytes(open_finished(folder).config, CONTEXT)
        quality = _measured(folder)
        for kind, nbytes in found.items():
            fits = next((size for size in MACHINES if size * 1e9 > nbytes + kept + SPARE), MACHINES[-1])
            size = gigabytes(nbytes)
            self.figures[kind].value = f"{size}, for a machine with {fits} GB; it costs {_cost(quality, kind)}"
        return None

    def _publish(self) -> Steps:
        self.link.show(None)
        self.bars.clear()
        folder, kinds = SESSION.merged, [kind for kind, tick in self.types.items() if tick.value]
        rented = self.elsewhere.chosen
        if not kinds:
            self.told.show("error", TICK)
            return
        other = rented and SESSION.is_older  # than what is here
        if folder and not other and is_bad(read_report(folder)) and not self._sure:
            self._sure = True
            self.told.show("warning", "It is worse than the plain average. Press once more to publish it all the same.")
            return
        if lacking := _lacking():
            yield partial(install, lacking, "input.quantizer")
        asked = {"private": self.repository.private, "license": self._license.value or None}
        yield from (self._there if rented else self._here)(kinds, self.repository.name, asked)

    def _here(self, kinds: list[str], repo: str, asked: dict[str, Any]) -> Steps:
        if not (folder := SESSION.merged):
            self.told.show("error", NO_MIXTURE)
            return
        made = yield partial(to_gguf, folder, kinds, progress=self.work.progress)
        out = made.files[kinds[0]][0].parent
        self._show((yield partial(publish_model, out, repo, **asked, progress=self.work.progress)))
        self.told.add("warning", *made.warnings)

    def _there(self, kinds: list[str], repo: str, asked: dict[str, Any]) -> Steps:
        if not (recipe := SESSION.recipe):
            self.told.show("error", MISTAKES)
            return
        prepared = replace((yield partial(SESSION.prepare, recipe)), source=SESSION.source)
        order = yield partial(order_gguf, prepared, kinds, repo, **asked)
        if done := (yield from self.rented.rent(order, self.work, self.told)):
            self._show(done)

    def _show(self, done: Published) -> None:
        sent = f" {gigabytes(done.sent)} were sent." if done.sent else ""
        self.told.show("good", f"It is on the Hub.{sent}")
        self.link.show(done.url)


def _tick(kind: str) -> w.Checkbox:
    tick = w.Checkbox(description=kind, value=kind == USUAL, indent=False, layout=w.Layout(width="110px"))
    tick.add_class(f"lazymoe-type-{kind.lower()}")
    return tick


def _measured(folder: Path) -> Quality | None:
    """Read what was measured of the GGUF files beside a mixture."""
    out = folder.with_name(f"{folder.name}{ENDING}")
    with suppress(LazyMoEError):
        return open_quantized(out).quality if is_quantized(out) else None
    return None


def _cost(quality: Quality | None, kind: str) -> str:
    """Say what a type costs: the loss that was measured, or what it costs most models."""
    found = quality.types.get(kind) if quality else None
    if not quality or not quality.exact or not found:
        return f"{TYPES[kind]} (not measured)"
    return f"{(sum(found.losses) - sum(quality.exact)) / len(quality.exact):+.3f} loss (measured)"


def _lacking() -> list[str]:
    """List the packages that GGUF takes and that aren't here, with the versions that are needed."""
    lacking = []
    for line in metadata.requires("lazymoe") or []:
        required = Requirement(line)
        if (
            required.marker
            and not required.marker.evaluate({"extra": ""})
            and required.marker.evaluate({"extra": "gguf"})
        ):
            try:
                metadata.version(required.name)
            except metadata.PackageNotFoundError:
                lacking.append(f"{required.name}{required.specifier}")
    return lacking
