"""Which data sets are benchmarks of the Hub, and what they call their tasks: by the eval.yaml that these have."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from lazymoe.hub.client import without_bars

FILE = "eval.yaml"


@functools.lru_cache(maxsize=256)
def find_benchmark(dataset: str, config: str | None) -> str | None:
    """Find what a benchmark of the Hub calls a task.

    Args:
        dataset: where the task's data set is on the Hub.
        config: the part of it that the task takes, if it has parts.

    Returns:
        The name; None if the data set is no benchmark, has no such task, or can't be asked.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        with without_bars():
            path = hf_hub_download(dataset, FILE, repo_type="dataset")
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        HFValidationError,
        yaml.YAMLError,
        RecursionError,
    ):  # what the client raises is an OSError
        return None
    tasks: Any = found.get("tasks") if isinstance(found, dict) else None
    listed = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    fitting = [task for task in listed if config is None or task.get("config", config) == config]
    names = [task["id"] for task in fitting if isinstance(task.get("id"), str)]
    return names[0] if len(names) == 1 else None
