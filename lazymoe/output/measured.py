"""What a card shows of the files in which a mixture's measures lie: nothing of one that LazyMoE didn't write."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lazymoe.files import writable

Text = Annotated[str, BeforeValidator(lambda value: writable(value) if isinstance(value, str) else value)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
SHARES = ("acc_norm", "acc", "exact_match")  # metrics of an evaluation that are of 0 to 1, shown in percent


class Read(BaseModel):
    """What is read from a file of a mixture."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Report(Read):
    """Of report.json. D experts of the recipe have D domains."""

    names: list[Text]
    held_out: bool
    mean_accuracy: Figure
    mean_shares: list[list[Figure]]
    losses: dict[Text, list[Figure]]
    recovered: list[Figure] | None = None

    def fits(self, experts: int) -> bool:
        """Tell whether everything has the length that belongs to so many experts."""
        rows: list[Any] = [self.names, self.mean_shares, *self.mean_shares]
        if self.losses:
            rows += [self.losses.get(key, []) for key in ("base", "average", "mixture", *self.names)]
            rows.append(self.recovered or [])
        return all(len(row) == experts for row in rows)


class _Score(Read):
    value: Figure


class _Result(Read):
    task: Text
    metric: Text
    n: Count
    shots: Annotated[int, Field(ge=0)]
    whole: bool
    data: tuple[Text, Text | None] | None
    benchmark: Text | None
    scores: dict[Text, _Score]
    spelled: dict[Text, Text]
    bits: Count | None


class _Evaluation(Read):
    """Of evaluation.json."""

    fingerprint: Text
    models: list[Text]
    results: list[_Result]
    limit: int | None
    command: Text
    versions: dict[Text, Text]
    date: Text
    verdict: Text

    def fits(self) -> bool:
        """Tell whether each model has its figure everywhere."""
        asked = set(self.models)
        return all(set(result.scores) == set(result.spelled) == asked for result in self.results)


def sound_report(found: dict[str, Any], experts: int) -> dict[str, Any]:
    """Give a report back; empty if it isn't what LazyMoE wrote.

    Args:
        found: what report.json has.
        experts: how many the mixture has.
    """
    try:
        return found if _Report.model_validate(found).fits(experts) else {}
    except ValidationError:
        return {}


def sound_evaluation(found: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Give an evaluation back; empty if it isn't what LazyMoE wrote, or of another mixture.

    Args:
        found: what evaluation.json has.
        fingerprint: of the mixture.
    """
    try:
        read = _Evaluation.model_validate_json(json.dumps(found))  # as JSON: a pair is a list there
    except (ValidationError, ValueError):
        return {}
    return found if read.fits() and read.fingerprint == fingerprint else {}
