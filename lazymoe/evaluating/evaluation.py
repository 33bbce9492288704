"""What came out: of each task a figure for each model, and how sure it is that the mixture's is another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lazymoe.evaluating.statistics import LEVEL, Estimate
from lazymoe.evaluating.suites import AVERAGE, BASE, MIXTURE
from lazymoe.files import write_whole
from lazymoe.output.folder import EVALUATION
from lazymoe.output.measured import SHARES

NOTE = (
    f"An interval holds the true figure in {LEVEL:.0%} of cases. Better and worse are said only where all of them hold"
    " together."
)


@dataclass(frozen=True)
class Result:
    """What came out of a task, or of a group of tasks as one.

    Attributes:
        task: its name.
        metric: lm-eval's, with the filter's name behind a comma if answers pass one.
        higher: whether more of it is better.
        n: questions.
        shots: examples in a prompt.
        versions: of each task, lm-eval's.
        whole: whether all of its questions were asked.
        data: where its data set is on the Hub, and the name of its part there; None for one's own.
        benchmark: what its data set, which the Hub has as a benchmark, calls this task; None if it isn't one.
        scores: of each model the figure, with its interval; one without ends where none can be given.
        differences: by how much the mixture's figure is larger than each other model's, on the same questions.
        changes: the same at the level that is left of `LEVEL` if all differences are to hold together.
        metrics: of each model, all that lm-eval measured: task to metric to figure.
        bits: 4 if the models have written their answers in 4 bit; None if all were asked as they are.
    """

    task: str
    metric: str
    higher: bool
    n: int
    shots: int
    versions: dict[str, str]
    whole: bool
    data: tuple[str, str | None] | None
    benchmark: str | None
    scores: dict[str, Estimate]
    differences: dict[str, Estimate]
    changes: dict[str, Estimate]
    metrics: dict[str, dict[str, dict[str, float]]]
    bits: int | None

    def better(self, other: str) -> int:
        """Tell whether the mixture is better than another model: 1, worse: -1, or not surely either: 0.

        Args:
            other: its name.
        """
        change = self.changes[other]
        return (1 if (change.low > 0) == self.higher else -1) if change.differs else 0

    def spell(self, x: float, signed: bool = False) -> str:
        """Spell a figure of its metric: in percent, or as it is.

        Args:
            x: the figure.
            signed: with its sign, for a difference.
        """
        sign = "+" if signed else ""
        return f"{100 * x:{sign}.1f}" if self._is_share else f"{x:{sign}.3f}"

    def interval(self, found: Estimate, signed: bool = False) -> str:
        """Spell a figure with its interval, if it has one: ``57.0 % (47.2 to 66.3)``.

        Args:
            found: of a model, or of a difference.
            signed: as in `spell`.
        """
        value = f"{self.spell(found.value, signed)}{' %' * self._is_share}"
        if not math.isfinite(found.low):
            return value
        return f"{value} ({self.spell(found.low, signed)} to {self.spell(found.high, signed)})"

    @property
    def _is_share(self) -> bool:
        return self.metric.partition(",")[0] in SHARES


@dataclass(frozen=True)
class Evaluation:
    """What came out of an evaluation.

    Attributes:
        fingerprint: of the mixture, as its record has it.
        models: who was asked, in the order of tables; the experts by their names.
        results: of each task.
        left_out: tasks that were asked for and left out, and why.
        limit: the most questions of each task, if there was a limit.
        command: what runs it again.
        versions: of the programs that measured, by name.
        date: when, ISO 8601.
    """

    fingerprint: str
    models: list[str]
    results: list[Result]
    left_out: dict[str, str]
    limit: int | None
    command: str
    versions: dict[str, str]
    date: str

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` gave.

        Args:
            found: its fields by name; others don't matter.

        Raises:
            ValueError: if it isn't that.
        """
        try:
            results = [Result(**{name: _read(name, each[name]) for name in Result.__annotations__})
                       for each in found["results"]]  # fmt: skip
            return cls(**{name: found[name] for name in cls.__annotations__} | {"results": results})
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{type(e).__name__}: {e}") from None

    @property
    def verdict(self) -> str:
        """Whether the mixture is better than the base model and the plain average, in words; empty if not asked."""
        known = [self.against(other) for other in (BASE, AVERAGE) if other in self.models]
        return " ".join(filter(None, known)) if MIXTURE in self.models else ""

    def against(self, other: str) -> str:
        """Say on which tasks the mixture is better than another model, worse, or neither as far as can be told.

        Args:
            other: its name.
        """
        name = {BASE: "the base model", AVERAGE: "the plain average"}.get(other, f"expert {other}")
        known = [result for result in self.results if other in result.changes]
        kinds = {1: "better on", -1: "worse on", 0: "no difference at this number of questions on"}
        said = {words: [r.task for r in known if r.better(other) == kind] for kind, words in kinds.items()}
        parts = [f"{words} {_listed(tasks)}" for words, tasks in said.items() if tasks]
        return f"The mixture against {name}: {'; '.join(parts)}." if parts else ""

    def to_dict(self) -> dict[str, Any]:
        """Give its fields by name, and what follows from them, for programs, and for JSON."""
        found = asdict(self) | {"verdict": self.verdict}
        for result, fields in zip(self.results, found["results"], strict=True):
            fields["better"] = {other: result.better(other) for other in result.changes}
            fields["spelled"] = {name: result.interval(score) for name, score in result.scores.items()}
            for key in ("scores", "differences", "changes"):
                fields[key] = {name: _plain(estimate) for name, estimate in getattr(result, key).items()}
        return found

    def save(self, folder: Path) -> None:
        """Put it beside a mixture, for its card.

        Args:
            folder: the mixture's.
        """
        write_whole(folder / EVALUATION, json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self) -> str:
        """Write out figures, differences and what they mean."""
        lines = []
        for result in self.results:
            lines += [*self._table(result), ""]
        if MIXTURE in self.models and len(self.models) > 1:
            lines += [self.against(other) for other in self.models if other != MIXTURE]
            lines += ["", NOTE, ""]
        lines += [f"Left out: {task}: {why}" for task, why in self.left_out.items()]
        return "\n".join(lines).rstrip()

    def _table(self, result: Result) -> Iterator[str]:
        """Yield the lines of a task: a row for each model."""
        how = f", {result.shots} examples in the prompt" if result.shots else ""
        how += f", written in {result.bits} bit" if result.bits else ""
        order = "higher" if result.higher else "lower"
        yield f"{result.task}: {result.metric}, {order} is better; {result.n} questions{how}"
        wide = max(len(name) for name in self.models) + 2
        for name in self.models:
            line = f"  {name:<{wide}}{result.interval(result.scores[name]):<28}"
            if name in result.differences:
                mark = {1: ": better", -1: ": worse", 0: ""}[result.better(name)]
                line += f" mixture {result.interval(result.differences[name], True)}{mark}"
            yield line.rstrip()


def _read(name: str, value: Any) -> Any:
    """Read a field of a result from JSON: a pair is a list there, and an end that isn't known nothing."""
    if name in ("scores", "differences", "changes"):
        ends = {"low": -math.inf, "high": math.inf}
        return {who: Estimate(**{k: ends[k] if v is None else v for k, v in one.items()}) for who, one in value.items()}
    return tuple(value) if name == "data" and value else value


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """Give an estimate for JSON, which has no infinity."""
    return {key: value if math.isfinite(value) else None for key, value in estimate._asdict().items()}


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
