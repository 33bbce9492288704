"""What is asked: lm-eval's tasks by name, suites of them, and tasks of one's own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lazymoe.errors import error, nearest
from lazymoe.evaluating.questions import OWN, of_questions, of_texts, read_questions
from lazymoe.evaluating.suites import SUITES
from lazymoe.files import absolute

HARNESS = "lm-eval[hf]>=0.4.13"
GENERATES = "generate_until"  # lm-eval's word for what a task asks that wants a text of the model


@dataclass(frozen=True)
class Row:
    """What one row of the tables is about.

    Attributes:
        name: as it was asked for; ``texts of NAME`` for texts of an expert's domain.
        tasks: lm-eval's; several where the name is that of a group of them.
    """

    name: str
    tasks: tuple[Any, ...]

    @property
    def generates(self) -> bool:
        """Whether a model must write a text to be measured."""
        return any(task.OUTPUT_TYPE == GENERATES for task in self.tasks)

    @property
    def barred(self) -> str:
        """Why it isn't asked anywhere; empty if it may be."""
        if any(getattr(task, "UNSAFE_CODE", False) for task in self.tasks):
            return "it runs code that a model has written"
        if any(getattr(task, "MULTIMODAL", False) for task in self.tasks):
            return "it wants pictures or sound"
        return ""

    def questions(self, limit: int | None) -> int:
        """Count its questions.

        Args:
            limit: the most of each task, if there is one.
        """
        sizes = (len(task.eval_docs) for task in self.tasks)
        return sum(size if limit is None else min(size, limit) for size in sizes)


def has_harness() -> bool:
    """Tell whether lm-eval is here, with what its model of transformers takes."""
    return all(map(find_spec, ("lm_eval", "accelerate", "peft", "scipy")))


def check_harness() -> None:
    """Look whether lm-eval is here.

    Raises:
        LazyMoEError: if it isn't.
    """
    if not has_harness():
        raise error("input.lm-eval", "evaluate", "this takes EleutherAI's lm-eval", f"Run: pip install '{HARNESS}'")


def load_rows(names: Sequence[str], texts: Mapping[str, Sequence[str]]) -> list[Row]:
    """Load what is asked for, with its data sets.

    Args:
        names: of tasks, groups or suites, with ``:N`` behind a name for N examples in the prompt; or of files of
            questions.
        texts: for each expert's name, texts of its domain.

    Raises:
        LazyMoEError: if there is none, a name isn't known, a file isn't one of questions, or a data set can't be had.
    """
    spelled = [part for name in names for part in SUITES.get(name, (name,))]
    if not spelled and not texts:
        remedy = f"Name lm-eval's, a file of questions ({OWN}), or a suite: {', '.join(SUITES)}."
        raise error("input.tasks", "tasks", "there are none", remedy)
    rows = []
    own = [of_questions(absolute(name)) for name in spelled if name.endswith(OWN)]
    own += [of_texts(name, some) for name, some in texts.items()]
    known = [name for name in spelled if not name.endswith(OWN)]
    from lm_eval.tasks import TaskManager

    with quietly():
        if known:
            rows += [row for name in dict.fromkeys(known) for row in _load(name)]
        manager = TaskManager(include_defaults=False)
        rows += [Row(config["task"], tuple(manager.load([config])["tasks"].values())) for config in own]
    names = [task.task_name for row in rows for task in row.tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise error("input.tasks", "tasks", f"'{twice[0]}' is asked for twice", "Name it once, or a group that has it.")
    return rows


def check_asked(names: Sequence[str]) -> list[Path]:
    """Check what can be of what is asked for before lm-eval loads it.

    Args:
        names: as `load_rows` takes them.

    Returns:
        The files of questions among them.

    Raises:
        LazyMoEError: as `load_rows`; where lm-eval isn't here, no name is looked up.
    """
    files = [absolute(name) for name in names if name.endswith(OWN)]
    for path in files:
        read_questions(path)
    if has_harness():
        for name in (name for name in names if not name.endswith(OWN) and name not in SUITES):
            _named(name)
    return files


@functools.cache
def _manager() -> Any:
    """Give what knows lm-eval's tasks by name: it reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _named(name: str) -> tuple[str, str]:
    """Take a name apart: of a task or a group, and the number of examples, if there is one.

    Raises:
        LazyMoEError: if lm-eval doesn't know it, or that is no number.
    """
    plain, colon, shots = name.partition(":")
    known = _manager().all_tasks
    if plain not in known:
        near = nearest(plain, known)
        remedy = near if near.startswith("Did") else "List them: lm-eval ls tasks"
        raise error("input.tasks", "tasks", f"there is no task '{plain}' in lm-eval", remedy)
    if colon and not shots.isdecimal():
        raise error("input.tasks", "tasks", f"'{shots}' in '{name}' is no number of examples", f"Say {plain}:5.")
    return plain, shots


def _load(name: str) -> list[Row]:
    """Load a task or a group by name: a row for each task, or one where lm-eval takes the group's for one.

    Raises:
        LazyMoEError: as `load_rows`.
    """
    plain, shots = _named(name)
    try:
        loaded = _manager().load([plain])
    except ImportError as e:
        what = f"'{plain}' takes a package that isn't here ({_first_line(e)})"
        raise error("input.tasks", "tasks", what, "Install it, or leave the task out.") from None
    except (ConnectionError, OSError) as e:  # what data sets that can't be had raise
        what = f"the data set of '{plain}' can't be had ({_first_line(e)})"
        raise error("hub.unreachable", "tasks", what, "Look whether the Hub can be reached, and try again.") from None
    except Exception as e:  # a task's own code
        what = f"lm-eval can't load '{plain}' ({_first_line(e)})"
        raise error("input.tasks", "tasks", what, "Leave it out.") from None
    tasks = tuple(loaded["tasks"].values())
    for task in tasks if shots else ():
        task.set_config("num_fewshot", int(shots))
    pooled = getattr(loaded["groups"].get(plain), "aggregate_metric_list", None) or []
    if pooled and all(one.weight_by_size for one in pooled):
        return [Row(plain, tasks)]
    return [Row(task.task_name, (task,)) for task in tasks]


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Keep lm-eval and datasets from telling what they do: a user sees our own progress."""
    import datasets
    from lm_eval.api import task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    drawn, bars = datasets.utils.logging.is_progress_bar_enabled(), task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm = lambda things, **_: things
    try:
        yield
    finally:
        task.tqdm = bars
        if drawn:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
