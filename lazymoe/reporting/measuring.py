"""Measuring a finished mixture: for losses every model reads the same texts, the base model, each expert, the plain
average of the experts' weights, the mixture. Routing alone takes the mixture's pass only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from lazymoe.checkpoint.opening import open_folder
from lazymoe.errors import error
from lazymoe.files import absolute
from lazymoe.forward.device import pick_device
from lazymoe.forward.losses import Average, dense_losses, mixture_losses
from lazymoe.forward.mixture import run
from lazymoe.forward.stream import Weights
from lazymoe.forward.tokens import WINDOW, load_tokenizer, windows
from lazymoe.output.folder import open_finished
from lazymoe.planning.prepared import SHARD_SIZE, Prepared, prepare
from lazymoe.progress import Progress, silent
from lazymoe.reporting.report import Report

Texts = Sequence[Sequence[str]]  # for each expert, in the recipe's order, texts of its domain


def report(
    folder: str | os.PathLike[str],
    texts: Texts | None = None,
    *,
    losses: bool = True,
    device: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure a finished mixture.

    Args:
        folder: the mixture's, which holds the recipe; the recipe's models must be reachable.
        texts: for each expert, texts of its domain that the routers have not seen; its prompts if absent.
        losses: also measure how good it is, for which every one of its models is run; else its routing alone.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the models done.

    Raises:
        LazyMoEError: if the folder isn't such a mixture, or its models can't be found.
    """
    path = absolute(folder)
    return measure(reopen(path), path, texts, losses=losses, device=device, progress=progress)


def measure(
    prepared: Prepared,
    folder: Path,
    texts: Texts | None = None,
    *,
    losses: bool = True,
    device: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure the mixture that was made of a prepared recipe. Arguments and errors are those of `report`; the folder is
    absolute."""
    plan, device = prepared.sound_plan, pick_device(device)
    given = texts or [e.positive for e in prepared.prompts.experts]
    if len(given) != plan.experts or not all(given):
        what = f"{plan.experts} experts need a list of texts each"
        raise error("input.texts", "texts", what, "Give one list for each expert.")
    prepared.fetch()
    batches = [windows(plan.sources[0], domain) for domain in given]
    names = prepared.recipe.names

    models: dict[str, Weights] = {}
    if losses:
        models = {"base": plan.sources[0], **dict(zip(names, plan.expert_sources, strict=True))}
        models["average"] = Average(plan.expert_sources)
    measured = {}
    for done, (name, source) in enumerate(models.items(), 1):
        measured[name] = dense_losses(plan, source, batches, device)
        progress("measure", done, len(models) + 1)
    measured["mixture"], shares, accuracy, entropy = mixture_losses(plan, open_folder(folder), batches, device)
    progress("measure", len(models) + 1, len(models) + 1)
    active = [plan.active(k) for k in range(1, plan.experts + 1)]
    return Report(names, texts is not None, measured if losses else {}, shares, accuracy, entropy, active, plan.top_k)


def trace(folder: str | os.PathLike[str], text: str, device: str | None = None) -> tuple[list[str], list[list[int]]]:
    """Which expert takes which token of a text.

    Args:
        folder: a finished mixture's.
        text: any; its first `WINDOW` tokens count.
        device: where to compute; a CUDA device if there is one by default.

    Returns:
        The tokens as text ``[T]``, and the first choice of each layer for each of them ``[L][T]``.

    Raises:
        LazyMoEError: as `report`.
    """
    path = absolute(folder)
    prepared, device = reopen(path), pick_device(device)
    plan = prepared.sound_plan
    prepared.fetch()
    tokenizer = load_tokenizer(plan.sources[0])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:WINDOW]
    if not ids:
        raise error("input.texts", "text", "it is empty", "Type a sentence.")
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    experts: list[list[int]] = [[] for _ in range(plan.layers)]

    def seen(layer: int, batch: int, chosen: Tensor, weights: Tensor) -> None:
        experts[layer] = chosen[len(start) :, 0].tolist()

    run(plan, open_folder(path), [torch.tensor([start + ids])], device, seen)
    return [tokenizer.decode([i]) for i in ids], experts


def reopen(folder: Path) -> Prepared:
    """The recipe of a finished mixture, prepared as it was for the merge.

    Raises:
        OutputError: if the folder isn't such a mixture.
    """
    done = open_finished(folder)
    options = {"shard_size": SHARD_SIZE, "allow_pickle": False}
    return prepare(done.recipe, **{key: done.record.get(key, default) for key, default in options.items()})


def read_texts(path: Path) -> Texts:
    """Texts to measure on, from a YAML (or JSON) file: for each expert, in the recipe's order, a list of texts.

    Raises:
        LazyMoEError: if the file can't be read or isn't that.
    """
    try:
        texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise error("input.texts", path, "the texts can't be read", "Name a YAML file.") from None
    if not isinstance(texts, list) or not all(
        isinstance(t, list) and all(isinstance(x, str) for x in t) for t in texts
    ):
        remedy = "Give one list of texts for each expert."
        raise error("input.texts", path, "this isn't a list of lists of texts", remedy)
    return texts
