"""What is asked: lm-eval's tasks by name, suites of them, questions of one's own, held-out texts of each domain."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lazymoe.errors import error, nearest
from lazymoe.evaluating.suites import SUITES
from lazymoe.files import absolute

HARNESS = "lm-eval[hf]>=0.4.13"
OWN = ".jsonl"  # ends the name of a file of questions
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPT = "Question: {{question}}\nAnswer:"
GENERATES = "generate_until"  # lm-eval's word for what a task asks that wants a text of the model
LINE = 'A line is {"question": …, "answer": …}, with "choices": […] where the answer is one of these.'
Config = dict[str, Any]  # of a task, as lm-eval takes it


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
    own = [_questions(absolute(name)) for name in spelled if name.endswith(OWN)]
    own += [(f"texts of {name}", _texts(name, some)) for name, some in texts.items()]
    known = [name for name in spelled if not name.endswith(OWN)]
    from lm_eval.tasks import TaskManager

    with quietly():
        if known:
            rows += [row for name in dict.fromkeys(known) for row in _load(name)]
        manager = TaskManager(include_defaults=False)
        rows += [Row(name, tuple(manager.load([config])["tasks"].values())) for name, config in own]
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
        if not any(True for _ in _lines(path)):
            raise error("input.questions", path, "it has no questions", LINE)
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


def _questions(path: Path) -> tuple[str, Config]:
    """Read a file of questions: its name, and the task.

    Raises:
        LazyMoEError: if it isn't one; all that is wrong with it names the line.
    """
    docs = list(_lines(path))
    if not docs:
        raise error("input.questions", path, "it has no questions", LINE)
    closed = [doc for doc in docs if "choices" in doc]
    if closed and len(closed) < len(docs):
        what = f"{len(closed)} of its {len(docs)} questions have choices"
        raise error("input.questions", path, what, "Put those with choices and those without into a file each.")
    config = _config(path.stem, docs, doc_to_text=PROMPT)
    if closed:
        more = {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": _metrics("acc", "acc_norm"),
        }
        return path.stem, config | more | {"doc_to_target": "answer"}
    more = {"output_type": "loglikelihood", "metric_list": _metrics("acc", "bits_per_byte")}
    return path.stem, config | more | {"doc_to_target": "{{' ' ~ answer}}", "process_results": _open_answer}


def _open_answer(doc: Config, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Judge an open answer: right if the model would write just that."""
    [(likelihood, greedy)] = results
    return {"acc": int(greedy), "bits_per_byte": (likelihood, len(f" {doc['answer']}".encode()))}


def _lines(path: Path) -> Iterator[Config]:
    """Read the questions of a file, each with its answer as the number of a choice, or as a text.

    Raises:
        LazyMoEError: if the file can't be read, or a line isn't a question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it isn't UTF-8"
        raise error("input.questions", path, f"it can't be read ({reason})", "Name a JSONL file.") from None
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _question(json.loads(line))
            except (ValueError, RecursionError) as e:
                what = "not JSON" if isinstance(e, json.JSONDecodeError) else e
                raise error("input.questions", path, f"line {n}: {what}", LINE) from None


def _question(found: Any) -> Config:
    """Take a question.

    Raises:
        ValueError: if it isn't one; the message says why.
    """
    if not isinstance(found, dict) or not isinstance(found.get("question"), str):
        raise ValueError("there is no text named 'question'")
    question, answer, choices = found["question"], found.get("answer"), found.get("choices")
    if choices is None:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError("its 'answer' is no text")
        return {"question": question, "answer": answer.strip()}
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("its 'choices' are no list of two texts or more")
    if isinstance(answer, str):  # the choice itself, or its letter
        spelled = choices if answer in choices else list(LETTERS[: len(choices)])
        answer = spelled.index(answer) if answer in spelled else None
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise ValueError("its 'answer' is none of its choices, nor the letter or the number, from 0, of one")
    return {"question": question, "choices": choices, "answer": answer}


def _texts(name: str, texts: Sequence[str]) -> Config:
    """Make a task of the texts of a domain."""
    docs = [{"text": text} for text in texts]
    more = {"output_type": "loglikelihood_rolling", "doc_to_target": "text"}
    return (
        _config(f"texts of {name}", docs, doc_to_text="")
        | more
        | {"metric_list": _metrics("bits_per_byte", "byte_perplexity")}
    )


def _config(name: str, docs: Sequence[Config], **more: Any) -> Config:
    """Make the config of a task of one's own documents."""
    from datasets import Dataset

    dataset = {"test": Dataset.from_list(list(docs))}
    return {"task": name, "custom_dataset": lambda **_: dataset, "test_split": "test", "num_fewshot": 0} | more


def _metrics(*names: str) -> list[Config]:
    kinds = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity"}
    return [
        {"metric": name, "aggregation": kinds.get(name, "mean"), "higher_is_better": name not in kinds}
        for name in names
    ]


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
