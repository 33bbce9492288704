"""Asking all of them, and comparing what they say."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from lazymoe.errors import error
from lazymoe.evaluating.bringing import bringing
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.evaluating.gathering import gather
from lazymoe.evaluating.kept import AGAIN, key_of
from lazymoe.evaluating.models import choose, open_models, read_for
from lazymoe.evaluating.questions import OWN
from lazymoe.evaluating.suites import KINDS
from lazymoe.evaluating.tasks import Row, check_harness, load_rows
from lazymoe.files import absolute, cache, unwritten
from lazymoe.forward.device import pick_device
from lazymoe.output.folder import Finished, open_finished, reopen
from lazymoe.planning.prepared import Where
from lazymoe.progress import Progress, silent
from lazymoe.reporting.measuring import Texts, by_expert
from lazymoe.units import gigabytes
from lazymoe.version import __version__

SHARE = 0.25  # of the memory that is free: what states may take of it
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
    from lazymoe.evaluating.harness import ask

    names, kinds, device = split(tasks), choose(split(models)), pick_device(device)
    if limit is not None and limit < 1:
        raise error("input.limit", "limit", f"{limit} is no number of questions", "Say 100, or leave it out.")
    path = absolute(folder)
    done, prepared = open_finished(path), reopen(path, source)
    experts = prepared.recipe.names
    rows = load_rows(names, dict(zip(experts, by_expert(texts, experts), strict=True)) if texts else {})
    bits, left_out = _ways_to_write(done, rows, device)
    left_out |= {row.name: row.barred for row in rows if row.barred}
    rows = [row for row in rows if row.name not in left_out]
    if not rows:
        why = "; ".join(f"{name} is left out: {why}" for name, why in left_out.items())
        raise error("input.tasks", "tasks", why, "Name tasks that only ask what is likely.")

    size = sum(row.questions(limit) for row in rows)
    found: dict[str, dict[str, Any]] = {}
    total = size * sum(len(experts) if kind == "experts" else 1 for kind in kinds)
    progress("evaluate", 0, total)
    groups = [group for kind in kinds for group in read_for(prepared, kind)]
    place = absolute(cache())
    try:
        place.mkdir(parents=True, exist_ok=True)
        with bringing(prepared, groups, key_of(done.record.fingerprint), progress) as reading:
            for model in open_models(done, prepared, kinds, device):
                before = size * len(found)

                def passed(answered: int, before: int = before) -> None:
                    progress("evaluate", before + answered, total)

                with reading(model.sources):
                    means = model.means(memory or int(SHARE * _free(device)), place)
                    found[model.name] = ask(model, rows, limit, means=means, bits=bits, device=device, passed=passed)
    except OSError as e:
        raise unwritten(e, place, "the evaluation stopped", AGAIN) from None
    progress("evaluate", total, total)
    return Evaluation(
        fingerprint=done.record.fingerprint,
        models=list(found),
        results=gather(rows, found, bits),
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


def _free(device: str) -> int:
    """Find how many bytes of memory are free on a device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _ways_to_write(done: Finished, rows: Sequence[Row], device: str) -> tuple[Literal[4] | None, dict[str, str]]:
    """Find how models are loaded that must write texts: bits as `load` takes them, the same for all; and the tasks that
    are left out, with the reason, as the largest, the mixture, has no room."""
    wanted = [row.name for row in rows if row.generates]
    room, record = SPARE * _free(device), done.record
    if record.bytes < room:
        return None, {}
    if record.bytes_4bit < room and find_spec("bitsandbytes"):
        return 4, {}
    what, takes = "it wants texts of the model, which takes", f"{gigabytes(record.bytes_4bit)} of memory in 4 bit"
    if record.bytes_4bit < room:
        takes = f"{gigabytes(record.bytes)} of memory, or the package bitsandbytes for 4 bit"
    return None, dict.fromkeys(wanted, f"{what} {takes}; {gigabytes(int(_free(device)))} are free")


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
