"""What lm-eval found, as results: of each task the figure that tables show, and how sure the differences are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lazymoe.evaluating.benchmarks import find_benchmark
from lazymoe.evaluating.evaluation import Result
from lazymoe.evaluating.statistics import LEVEL, Estimate, Values, difference, mean
from lazymoe.evaluating.suites import MIXTURE
from lazymoe.evaluating.tasks import Row

# what tables show of a task's metrics: the first of these that it has, else its own first
PREFERRED = ("acc_norm", "acc", "exact_match", "bits_per_byte", "f1", "perplexity")


def gather(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]], bits: int | None) -> list[Result]:
    """Make results of what lm-eval found.

    Args:
        rows: what was asked.
        found: of each model's name, what `harness.ask` gives.
        bits: of the models that have written texts, as `harness.ask` takes them.
    """
    others = [name for name in found if name != MIXTURE] if MIXTURE in found else []
    # Bonferroni: as many differences are looked at as there are, and all of them are to hold together
    level = 1 - (1 - LEVEL) / max(1, len(others) * len(rows))
    return [_result(row, found, others, level, bits if row.generates else None) for row in rows]


def _result(
    row: Row, found: Mapping[str, Mapping[str, Any]], others: Sequence[str], level: float, bits: int | None
) -> Result:
    """Make the result of a row."""
    names = [task.task_name for task in row.tasks]
    first = next(iter(found.values()))
    metric, kept_by = _chosen(first["samples"][names[0]])
    key = metric if kept_by == "none" else f"{metric},{kept_by}"
    higher = bool(first["higher_is_better"][names[0]].get(metric, True))
    values = {
        name: _values([s for n in names for s in one["samples"][n]], metric, kept_by) for name, one in found.items()
    }
    n, weights = len(next(iter(values.values()))[0]), next(iter(values.values()))[1]
    whole = {name: one["results"][names[0]].get(f"{metric},{kept_by}") for name, one in found.items()}
    simple = _is_mean(row, metric)
    scores = {
        name: mean(own, by) if simple else Estimate(float(whole[name]), -math.inf, math.inf)
        for name, (own, by) in values.items()
    }

    def compared(level: float) -> dict[str, Estimate]:
        if not simple:
            return {}
        return {other: difference(values[MIXTURE][0], values[other][0], weights, level) for other in others}

    config = row.tasks[0].config
    data = None if config.custom_dataset or len(names) > 1 else (config.dataset_path, config.dataset_name)
    return Result(
        task=row.name,
        metric=key,
        higher=higher,
        n=n,
        shots=int(config.num_fewshot or 0),
        versions={name: str(first["versions"][name]) for name in names},
        whole=n == row.questions(None),
        data=data,
        benchmark=find_benchmark(*data) if data else None,
        scores=scores,
        differences=compared(LEVEL),
        changes=compared(level),
        metrics={name: {n: _figures(one["results"][n]) for n in names} for name, one in found.items()},
        bits=bits,
    )


def _chosen(samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Choose the metric that tables show, and the filter that its answers have passed."""
    metrics = samples[0]["metrics"]
    return next((name for name in PREFERRED if name in metrics), metrics[0]), samples[0]["filter"]


def _is_mean(row: Row, metric: str) -> bool:
    """Tell whether a metric is a mean over questions, or over what they have."""
    from lm_eval.api.metrics import bits_per_byte, mean

    return all(task.aggregation().get(metric) in (mean, bits_per_byte) for task in row.tasks)


def _values(samples: Sequence[Mapping[str, Any]], metric: str, kept_by: str) -> tuple[Values, Values | None]:
    """Take what came of each question ``[n]``, and how many bytes it has if that is measured for each of these."""
    some = [sample[metric] for sample in samples if sample["filter"] == kept_by]
    if some and isinstance(some[0], (tuple, list)):  # a log-likelihood and bytes
        said, size = np.array(some, dtype=np.float64).T
        return -said / math.log(2), size
    return np.array(some, dtype=np.float64), None


def _figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Take the metrics of a task out of what lm-eval tells of it."""
    return {
        key: float(value)
        for key, value in found.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
