"""An evaluation as the Hub reads it: files in .eval_results, and the model-index of a card for older readers.

Only of benchmarks that were run with all of their questions, and of the mixture as it is, not in 4 bit: nothing else
can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lazymoe.output.folder import Finished
from lazymoe.output.measured import SHARES

FOLDER = ".eval_results"
NAME = f"{FOLDER}/lazymoe-*.yaml"  # of our own files there, as a pattern
MIXTURE = "mixture"


def result_files(done: Finished) -> dict[str, bytes]:
    """Write the files of results, where the client knows how: name to contents.

    Args:
        done: the mixture.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:  # before 1.4
        return {}
    import yaml

    files = {}
    for result in _comparable(done):
        if result["benchmark"]:
            entry = EvalResultEntry(
                dataset_id=result["data"][0],
                task_id=result["benchmark"],
                value=_value(result),
                date=done.evaluation["date"],
                notes=f"{_metric(result)}, {result['shots']}-shot, {_harness(done)}",
            )
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
            files[NAME.replace("*", re.sub(r"[^A-Za-z0-9_-]", "-", result["task"]))] = text.encode()
    return files


def model_index(done: Finished) -> list[Any]:
    """List the results for a card's front matter, as ``huggingface_hub.EvalResult``.

    Args:
        done: the mixture.
    """
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=result["data"][0],
            dataset_name=result["task"],
            dataset_config=result["data"][1],
            dataset_args={"num_few_shot": result["shots"]},
            metric_type=_metric(result),
            metric_value=_value(result),
            metric_name=f"{_metric(result)}, by {_harness(done)}",
        )
        for result in _comparable(done)
    ]


def _comparable(done: Finished) -> Iterator[dict[str, Any]]:
    """Yield the results of the mixture that others can be held against."""
    for result in done.evaluation.get("results", []):
        if MIXTURE in result["scores"] and result["whole"] and result["data"] and not result["bits"]:
            yield result


def _metric(result: dict[str, Any]) -> str:
    return str(result["metric"])


def _value(result: dict[str, Any]) -> float:
    """Give a figure: in percent where it is a share."""
    value = float(result["scores"][MIXTURE]["value"])
    return round(100 * value, 2) if _metric(result).partition(",")[0] in SHARES else round(value, 4)


def _harness(done: Finished) -> str:
    return f"lm-eval {done.evaluation['versions'].get('lm-eval', '')}".strip()
