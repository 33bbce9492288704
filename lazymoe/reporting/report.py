"""What was measured of a mixture, and what that means: who gets which token, and how good is it?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lazymoe.errors import Problem
from lazymoe.files import write_whole
from lazymoe.output.folder import PICTURES, REPORT, read_report
from lazymoe.reporting.picture import draw
from lazymoe.units import billions, spell_layers

CROWDED = 0.6  # share of balanced texts above which one expert has a layer nearly to itself
ALIKE = 0.1  # distance between two domains' first choices, of 0 to 1, under which a layer treats them as one


@dataclass(frozen=True)
class Report:
    """What was measured. Domains are the experts' own, in the recipe's order; E = D experts, L layers.

    Attributes:
        names: of the experts.
        held_out: whether the texts were given for measuring; otherwise they are the router's own prompts.
        losses: mean loss per token, nats: model ("base", an expert's name, "average", "mixture") to ``[D]``; empty if
            only the routing was measured.
        shares: of a domain's tokens, what part of the choices went to each expert ``[L][D][E]``.
        accuracy: of a domain's tokens, for what part the first choice was its own expert ``[L][D]``.
        entropy: of a token's weights over the chosen experts, mean, in bits ``[L]``.
        active: parameters that a token meets with one expert per token, with two, and so on up to E.
        top_k: experts per token.
        first: of a domain's tokens, what part had each expert as their first choice ``[L][D][E]``. What is wrong is
            told by these: of all choices an expert gets ``1 / top_k`` at most, and where all experts are chosen each
            gets the same.
        benchmarks: what an evaluation says of the mixture; empty if there was none.
    """

    names: list[str]
    held_out: bool
    losses: dict[str, list[float]]
    shares: list[list[list[float]]]
    accuracy: list[list[float]]
    entropy: list[float]
    active: list[int]
    top_k: int
    first: list[list[list[float]]] = field(default_factory=list)
    benchmarks: str = ""

    def recovered(self, model: str = "mixture", domain: int | None = None) -> float:
        """Work out how far a model came from the base model (0) to a domain's own expert (1).

        Args:
            model: by its name in ``losses``, which must be there.
            domain: its number; None for all domains together.
        """
        domains = range(len(self.names)) if domain is None else [domain]
        base, reached = (sum(self.losses[key][d] for d in domains) for key in ("base", model))
        own = sum(self.losses[self.names[d]][d] for d in domains)
        return (base - reached) / (base - own) if base != own else 1.0

    @property
    def mean_accuracy(self) -> float:
        return sum(map(sum, self.accuracy)) / sum(map(len, self.accuracy))

    @property
    def mean_shares(self) -> list[list[float]]:
        """``shares`` over all layers: ``[D][E]``."""
        return [[float(x) for x in row] for row in np.array(self.shares).mean(0)]

    @property
    def load(self) -> list[list[float]]:
        """Each expert's share of all choices in each layer, domains counted equally: ``[L][E]``."""
        return [[float(x) for x in row] for row in np.array(self.shares).mean(1)]

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, and what follows from them, for programs, and for JSON."""
        domains = range(len(self.names))
        return asdict(self) | {
            "recovered": [self.recovered(domain=d) for d in domains] if self.losses else None,
            "recovered_mean": self.recovered() if self.losses else None,
            "mean_accuracy": self.mean_accuracy,
            "mean_shares": self.mean_shares,
            "verdict": self.verdict,
            "problems": [p.to_dict() for p in self.problems()],
        }

    def save(self, folder: Path) -> bool:
        """Put the report beside a mixture, as JSON and as pictures, for its card.

        Args:
            folder: the mixture's.

        Returns:
            False if it was not, since one is there that has losses and this one has none.
        """
        if saved := self.write(folder):
            for name, dark in PICTURES.items():
                write_whole(folder / name, draw(self.names, self.first or self.shares, dark))
        return saved

    def write(self, folder: Path) -> bool:
        """Put the report beside a mixture as JSON alone: `illustrate` draws the pictures when they are wanted.

        Args:
            folder: the mixture's.

        Returns:
            As `save`.
        """
        if not self.losses and (folder / REPORT).is_file() and read_report(folder).get("losses"):
            return False
        write_whole(folder / REPORT, json.dumps(self.to_dict(), indent=2) + "\n")
        return True

    def __str__(self) -> str:
        """Write out losses, where the tokens of each domain go, and what is wrong."""
        text = "held-out text" if self.held_out else "the routers' own prompts (give --texts for an honest figure)"
        lines = []
        if self.losses:
            lines += [f"Loss on {text}; lower is better:", "", self._row("", [*self.names, "mean", "recovered"])]
            for name, row in self.losses.items():
                cells = [f"{x:.3f}" for x in [*row, sum(row) / len(row)]]
                lines.append(self._row(name, [*cells, f"{self.recovered(name):.0%}"]))
            own = [f"{self.recovered(domain=d):.0%}" for d in range(len(self.names))]
            lines += [self._row("recovered by mixture", own), "", self._verdict, ""]
        lines += [self.benchmarks, ""] if self.benchmarks else []
        lines += [f"Where the tokens of {text} go ({self.mean_accuracy:.0%} to their own expert first):", ""]
        lines.append(self._row("", self.names))
        for e, name in enumerate(self.names):
            lines.append(self._row(f"to {name}", [f"{row[e]:.0%}" for row in self.mean_shares]))
        if self.top_k > 1:
            now, one = billions(self.active[self.top_k - 1]), billions(self.active[0])
            saved = 1 - self.active[0] / self.active[self.top_k - 1]
            lines += ["", f"A token meets {now} parameters; with 'experts_per_token: 1' {one}, {saved:.0%} fewer."]
        return "\n".join([*lines, "", *(f"warning: {p}" for p in self.problems())]).rstrip()

    def layers(self) -> str:
        """Write out what each expert gets in each layer, as a table with a line for each."""
        head = "What each expert gets in each layer, and how many tokens their own expert gets first:"
        lines = [head, "", self._row("", [*self.names, "right"])]
        for layer, row in enumerate(self.load):
            right = sum(self.accuracy[layer]) / len(self.names)
            lines.append(self._row(f"layer {layer}", [f"{x:.0%}" for x in [*row, right]]))
        return "\n".join(lines)

    def _row(self, name: str, cells: Sequence[str]) -> str:
        wide = max(12, *(len(n) + 2 for n in self.names))
        return f"{name:<24}" + "".join(f"{cell:>{wide}}" for cell in cells)

    @property
    def verdict(self) -> str:
        """How good the mixture is, by its losses and on benchmarks; empty if neither was measured."""
        return " ".join(filter(None, [self._verdict, self.benchmarks]))

    @property
    def _verdict(self) -> str:
        """One sentence on the losses."""
        if not self.losses:
            return ""
        base, average, mixture = (sum(self.losses[key]) for key in ("base", "average", "mixture"))
        if sum(self.losses[name][d] for d, name in enumerate(self.names)) >= base:
            return "On these texts the experts are no better than the base model: there is nothing to recover."
        share = f"{self.recovered():.0%} of what the experts gain over the base model is recovered"
        if mixture > average:
            return f"Worse than the plain average of its experts: don't publish it. {share}."
        return f"{share}; the plain average of the experts' weights recovers {self.recovered('average'):.0%}."

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with this mixture, in plain words."""
        shares, n = self.mean_shares, len(self.names)
        first = np.array(self.first or self.shares)  # [L, D, E]
        for e, name in enumerate(self.names):
            got = sum(row[e] for row in shares) / n
            if got < 1 / n / 4:
                what = f"it gets {got:.0%} of all tokens, so it is hardly used"
                remedy = "Give it more prompts, of the kind it should answer."
                yield Problem("report.unused", f"expert {name}", what, remedy)
            best = int(first.mean(0)[e].argmax())
            if best != e:
                what = f"most of its own texts' tokens go to {self.names[best]} first"
                remedy = "Its prompts are unlike its texts: use samples of these as prompts."
                yield Problem("report.astray", f"expert {name}", what, remedy)
        for layers, e in _crowded(first):
            what = f"in {spell_layers(layers, len(self.shares))} it gets more than {CROWDED:.0%} of all tokens first"
            remedy = "Give the others more prompts, of the kind they should answer."
            yield Problem("report.crowded", f"expert {self.names[e]}", what, remedy)
        for layers, a, b in _alike(first):
            what = f"{spell_layers(layers, len(self.shares))} treat their texts alike"
            remedy = "Give them prompts that differ more: whole texts of the kind each should answer."
            yield Problem("report.alike", f"experts {self.names[a]} and {self.names[b]}", what, remedy)
        if self.losses and sum(self.losses["mixture"]) > sum(self.losses["average"]):
            what = "it is worse than the plain average of its experts' weights, a dense model"
            remedy = "Don't publish this one: use 'gate_mode: fit' and better prompts."
            yield Problem("report.worse", "the mixture", what, remedy)


def illustrate(folder: Path) -> None:
    """Draw the pictures of the report that lies beside a mixture, those that aren't there; nothing if it has none.

    Args:
        folder: the mixture's.
    """
    found = read_report(folder)
    for name, dark in PICTURES.items():
        with suppress(OSError, KeyError, TypeError, ValueError, IndexError):  # the mixture is none the worse for it
            if not (folder / name).exists():
                write_whole(folder / name, draw(found["names"], found["first"], dark))


def _crowded(first: NDArray[np.float64]) -> Iterator[tuple[list[int], int]]:
    """Yield the layers in which one expert gets nearly everything, with that expert."""
    load = first.mean(1)  # [L, E]
    for e in range(load.shape[1] if load.shape[1] > 1 else 0):
        if layers := np.flatnonzero(load[:, e] > CROWDED).tolist():
            yield layers, e


def _alike(first: NDArray[np.float64]) -> Iterator[tuple[list[int], int, int]]:
    """Yield the layers that can't tell the texts of two experts apart, with the two."""
    for a in range(first.shape[1]):
        for b in range(a + 1, first.shape[1]):
            between = first[:, a] - first[:, b]  # [L, E]
            distance = np.abs(between).sum(-1) / 2  # [L]
            mixed_up = between[:, b] - between[:, a] > ALIKE  # a's texts go to b and b's to a: no better than alike
            if layers := np.flatnonzero((distance < ALIKE) | mixed_up).tolist():
                yield layers, a, b
