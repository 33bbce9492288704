"""Asking all of them, and comparing what they say."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lazymoe.errors import error
from lazymoe.evaluating.asking import Asking, Seated, Wanted, opened
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.evaluating.gathering import gather
from lazymoe.evaluating.kept import AGAIN
from lazymoe.evaluating.models import choose
from lazymoe.evaluating.questions import OWN
from lazymoe.evaluating.suites import KINDS
from lazymoe.evaluating.tasks import check_harness
from lazymoe.files import absolute, cache, unwritten
from lazymoe.forward.device import pick_device
from lazymoe.making import connected, device_on
from lazymoe.planning.prepared import Where
from lazymoe.progress import Progress, silent
from lazymoe.reporting.measuring import Texts
from lazymoe.units import gigabytes
from lazymoe.version import __version__

SPARE = 0.9  # of the memory that is free: what a model that is loaded may take of it


def evaluate(
    folder: str | os.PathLike[str],
    tasks: str | Sequence[str] = (),
    *,
    limit: int | None = None,
    models: str | Sequence[str] = KINDS,
    texts: Texts | None = None,
    memory: int | None = None,
    device: str | None = None,
    source: Where = "auto",
    on: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Ask the base model, each expert, the plain average of these and the mixture the same questions.

    A layer at a time is in memory, and in the mixture an expert; so it works where the mixture doesn't fit. Tasks that
    want a text of the model need it in memory, in its own dtype or in 4 bit: where that doesn't fit, they are left out.
    What was answered is kept, so the same call after a stop goes on, and one with more tasks asks only these.

    Args:
        folder: the mixture's, which holds the recipe; of the recipe's models those must be reachable that are asked.
        tasks: names of lm-eval's tasks or groups, ``:N`` behind one for N examples in the prompt; of a suite; or of
            JSONL files with questions. A list, or one text with commas.
        limit: the most questions of each task, the first ones.
        models: who is asked: some of "base", "experts", "average", "mixture".
        texts: for each expert, texts of its domain that the routers have not seen, as `lazymoe.report` takes them: then
            bits for each byte of them are measured too.
        memory: bytes that states may take while they go through a layer; a quarter of what is free by default. With
            less, weights are read more often, or states go to the disk.
        device: where to compute; a CUDA device if there is one by default.
        source: where the weights of models on the Hub are read, as in `lazymoe.merge`.
        on: the cluster whose machines share the models that are asked, as in `lazymoe.merge`.
        progress: told of the questions that are answered, stage ``evaluate``, and of the bytes of models that have
            arrived, stage ``download``.

    Returns:
        What came out.

    Raises:
        OutputError: if the folder isn't a finished mixture, or the disk has no room.
        RecipeError: if the recipe in it can't be read.
        LazyMoEError: if lm-eval isn't here, a task, a kind of model or a device isn't known, or its models can't be
            found or used; as the subclass of its kind.
    """
    check_harness()
    names, kinds, device = split(tasks), choose(split(models)), pick_device(device_on(on, device))
    if limit is not None and limit < 1:
        raise error("input.limit", "limit", f"{limit} is no number of questions", "Say 100, or leave it out.")
    asking = opened(Wanted(absolute(folder), names, texts, kinds, limit, memory, device, source))
    with connected(on), _seated(on, asking) as seated:
        bits, left_out = _ways_to_write(asking, seated.free)
        left_out |= {row.name: row.barred for row in asking.rows if row.barred}
        asking.leave_out(left_out)
        if not asking.rows:
            why = "; ".join(f"{name} is left out: {why}" for name, why in left_out.items())
            raise error("input.tasks", "tasks", why, "Name tasks that only ask what is likely.")
        total = asking.questions * len(asking.models)
        progress("evaluate", 0, total)
        try:
            found = seated.ask(bits, progress)
        except OSError as e:
            raise unwritten(e, absolute(cache()), "the evaluation stopped", AGAIN) from None
    progress("evaluate", total, total)
    return Evaluation(
        fingerprint=asking.done.record.fingerprint,
        models=list(found),
        results=gather(asking.rows, found, bits),
        left_out=left_out,
        limit=limit,
        command=command_of(names, limit, kinds, bool(texts)),
        versions={"LazyMoE": __version__} | {name: version(name) for name in ("lm-eval", "torch", "transformers")},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def split(words: str | Sequence[str]) -> list[str]:
    """Take a list, or the parts of a text with commas.

    Args:
        words: what a user gives.
    """
    listed = words.split(",") if isinstance(words, str) else words
    return [word.strip() for word in listed if word.strip()]


@contextmanager
def _seated(on: str | None, asking: Asking) -> Iterator[Seated]:
    """Have models asked here, or on a cluster's machines."""
    if on is None:
        yield asking
        return
    from lazymoe.evaluating.machines import machines

    with machines(asking) as found:
        yield found


def _ways_to_write(asking: Asking, free: int) -> tuple[Literal[4] | None, dict[str, str]]:
    """Find how models are loaded that must write texts: bits as `load` takes them, the same for all; and the tasks that
    are left out, with the reason, as the largest, the mixture, has no room."""
    wanted = [row.name for row in asking.rows if row.generates]
    room, record = SPARE * free, asking.done.record
    if record.bytes < room:
        return None, {}
    if record.bytes_4bit < room and find_spec("bitsandbytes"):
        return 4, {}
    what, takes = "it wants texts of the model, which takes", f"{gigabytes(record.bytes_4bit)} of memory in 4 bit"
    if record.bytes_4bit < room:
        takes = f"{gigabytes(record.bytes)} of memory, or the package bitsandbytes for 4 bit"
    return None, dict.fromkeys(wanted, f"{what} {takes}; {gigabytes(free)} are free")


def command_of(tasks: Sequence[str], limit: int | None, kinds: Sequence[str], texts: bool) -> str:
    """Spell the command that runs an evaluation again; of files, where they lie is nobody's business.

    Args:
        tasks, limit, kinds: as in `evaluate`, each in a list.
        texts: whether there are some.
    """
    own = [Path(name).name if name.endswith(OWN) else name for name in tasks]
    words = ["lazymoe", "evaluate", "my-moe", *(["--tasks", ",".join(own)] if own else [])]
    words += ["--texts", "texts.yaml"] if texts else []
    words += ["--limit", str(limit)] if limit else []
    words += ["--models", ",".join(kinds)] if tuple(kinds) != KINDS else []
    return shlex.join(words)
