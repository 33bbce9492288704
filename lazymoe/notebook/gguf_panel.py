"""Below step 7: the mixture as GGUF, in the types that are ticked, onto the Hub."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import ipywidgets as w
from packaging.requirements import Requirement

from lazymoe.errors import LazyMoEError
from lazymoe.exporting import sizes, to_gguf
from lazymoe.notebook import ui
from lazymoe.notebook.destination import Repository
from lazymoe.notebook.installing import install
from lazymoe.notebook.session import NO_MIXTURE, NO_TOKEN, SESSION
from lazymoe.notebook.verdict import is_bad
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.folder import open_finished, read_report
from lazymoe.output.quantized import ENDING, Quality, is_quantized, kept_bytes, open_quantized
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
    """The types with what they take and cost, a repository, and one button."""

    def __init__(self, license: Callable[[], str | None]) -> None:
        """Show it.

        Args:
            license: gives the licence that the user has chosen.
        """
        self._license, self._sure = license, False
        self._shown: tuple[Path, int] | None = None  # the mixture whose sizes are shown
        self._problem: str | None = None  # why there can be none of it
        self.types = {kind: _tick(kind) for kind in TYPES}
        self.figures = {kind: w.HTML() for kind in TYPES}
        self.repository = Repository("gguf-repo", ENDING)
        self.told, self.bars, self.link = ui.Messages(), ui.Bars(), ui.Link()
        start = ui.button("Publish as GGUF", "gguf-button", lambda: self.work.begin(self._publish()), width="170px")
        self.work = Work(start, "gguf", self.told, "Press Publish as GGUF to go on from here.", self.bars)
        rows = [w.HBox([self.types[kind], self.figures[kind]]) for kind in TYPES]
        title = w.HTML("<h4>As GGUF, for llama.cpp, Ollama and LM Studio</h4>")
        self._form = w.VBox([*rows, self.repository])
        super().__init__([title, self._form, self.work, self.bars, self.told, self.link])
        self.add_class("lazymoe-gguf")

    def hear(self) -> None:
        """Show what fits the session's state."""
        if self.work.goes_on:
            return
        self.repository.suggest()
        if self._shown != SESSION.mixture:
            self._shown, self._sure = SESSION.mixture, False
            self.link.show(None)
            self.bars.clear()
            self._problem = self._tell(SESSION.merged) if SESSION.merged else None
        self.work.allow(bool(SESSION.merged and SESSION.account and not self._problem))
        self._form.layout.display = "none" if self._problem else None
        waits = NO_MIXTURE if not SESSION.merged else NO_TOKEN if not SESSION.account else TICK
        self.told.show("note", self._problem or waits)

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
        if not folder or not kinds:
            self.told.show("error", TICK if folder else NO_MIXTURE)
            return
        if is_bad(read_report(folder)) and not self._sure:
            self._sure = True
            self.told.show("warning", "It is worse than the plain average. Press once more to publish it all the same.")
            return
        if lacking := _lacking():
            yield partial(install, lacking, "input.quantizer")
        repo, progress = self.repository, self.work.progress
        made = yield partial(to_gguf, folder, kinds, progress=progress)
        out = made.files[kinds[0]][0].parent
        license = self._license()
        done = yield partial(publish_model, out, repo.name, private=repo.private, license=license, progress=progress)
        self.told.show("good", f"It is on the Hub. {gigabytes(done.sent)} were sent.")
        self.told.add("warning", *made.warnings)
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
