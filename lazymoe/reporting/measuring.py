"""Measuring a finished mixture: for losses every model reads the same texts, the base model, each expert, the plain
average of the experts' weights, the mixture. Routing alone takes the mixture's pass only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lazymoe.checkpoint.opening import open_folder
from lazymoe.errors import Problem, RecipeError, error, failure, nearest
from lazymoe.files import absolute
from lazymoe.forward.device import pick_device
from lazymoe.forward.losses import Average, dense_losses, mixture_losses
from lazymoe.forward.mixture import run
from lazymoe.forward.skeleton import Weights
from lazymoe.forward.tokens import WINDOW, load_tokenizer, windows
from lazymoe.output.folder import open_finished, reopen
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress, silent
from lazymoe.recipe.yaml_text import parse
from lazymoe.reporting.report import Report

# for each expert texts of its domain: in the recipe's order, or by the experts' names or their numbers, from 1
Texts = Sequence[Sequence[str]] | Mapping[str | int, Sequence[str]]


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
        texts: for each expert, texts of its domain that the routers have not seen: a list of lists in the recipe's
            order, or by the experts' names or numbers; its prompts if absent.
        losses: also measure how good it is, for which every one of its models is run; else its routing alone.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the models done, stage ``measure``.

    Returns:
        What was measured.

    Raises:
        OutputError: if the folder isn't a finished mixture.
        RecipeError: if the recipe in it can't be read.
        LazyMoEError: if its models can't be found or used, an expert has no texts, or there is no such device; as the
            subclass of its kind.
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
    """Measure the mixture that was made of a prepared recipe.

    Args:
        prepared: the recipe.
        folder: the mixture's, absolute.
        texts, losses, device, progress: as in `report`.

    Raises:
        LazyMoEError: as `report`.
    """
    plan, device = prepared.sound_plan, pick_device(device)
    names = prepared.recipe.names
    given = by_expert(texts or [e.positive for e in prepared.prompts.experts], names)
    prepared.fetch(progress)
    tokenizer = load_tokenizer(plan.sources[0])
    batches = [windows(tokenizer, domain) for domain in given]
    if short := [name for name, (_, real) in zip(names, batches, strict=True) if real.sum() < 2]:
        what = f"those for {', '.join(short)} are too short: they have no token that follows another"
        raise error("input.texts", "texts", what, "Give whole sentences.")

    models: dict[str, Weights] = {}
    if losses:
        models = {"base": plan.sources[0], **dict(zip(names, plan.expert_sources, strict=True))}
        models["average"] = Average(plan.expert_sources)
    measured = {}
    for done, (name, source) in enumerate(models.items(), 1):
        measured[name] = dense_losses(plan, source, batches, device)
        progress("measure", done, len(models) + 1)
    measured["mixture"], routing = mixture_losses(plan, open_folder(folder), batches, device)
    progress("measure", len(models) + 1, len(models) + 1)
    active = [plan.active(k) for k in range(1, plan.experts + 1)]
    return Report(
        names, texts is not None, measured if losses else {}, active=active, top_k=plan.top_k,
        benchmarks=str(open_finished(folder).evaluation.get("verdict", "")), **routing._asdict(),
    )  # fmt: skip


def by_expert(texts: Texts, names: Sequence[str]) -> list[list[str]]:
    """Put texts in the order of the experts, without blank ones.

    Args:
        texts: as `report` takes them.
        names: of the experts.

    Raises:
        LazyMoEError: if an expert has none, or there are some for nobody.
    """
    listed: list[list[str]] = [[] for _ in names]
    problems: list[Problem] = []
    if not isinstance(texts, Mapping):
        if len(texts) != len(names):
            what = f"{len(names)} experts need a list of texts each"
            raise error("input.texts", "texts", what, "Give one list for each expert.")
        texts = dict(enumerate(texts, 1))
    for key, domain in texts.items():
        known = dict(zip(names, range(len(names)), strict=True))
        expert = known.get(str(key), int(key) - 1 if str(key).isdecimal() else -1)
        if not 0 <= expert < len(names):
            problems.append(Problem("input.texts", "texts", f"there is no expert '{key}'", nearest(str(key), names)))
        elif listed[expert]:
            what = f"there are two lists for {names[expert]}"
            problems.append(Problem("input.texts", "texts", what, "Give it one, by its name or its number."))
        else:
            listed[expert] = [text for text in domain if text.strip()]
    if not problems and (missing := [name for name, domain in zip(names, listed, strict=True) if not domain]):
        what = f"there are none for {', '.join(missing)}"
        problems.append(Problem("input.texts", "texts", what, "Give a list of texts for each expert."))
    if problems:
        raise failure(problems)
    return listed


def trace(folder: str | os.PathLike[str], text: str, device: str | None = None) -> tuple[list[str], list[list[int]]]:
    """Find which expert takes which token of a text.

    Args:
        folder: a finished mixture's.
        text: any; its first `WINDOW` tokens count.
        device: where to compute; a CUDA device if there is one by default.

    Returns:
        The tokens as text ``[T]``, and the first choice of each layer for each of them ``[L][T]``. Together the tokens
        are the text: of several that make up one character, the last has it and the others have nothing.

    Raises:
        LazyMoEError: as `report`; or if the text is empty.
    """
    path = absolute(folder)
    prepared, device = reopen(path), pick_device(device)
    plan = prepared.sound_plan
    prepared.fetch()
    tokenizer = load_tokenizer(plan.sources[0])
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = read["input_ids"][:WINDOW]
    if not ids:
        raise error("input.texts", "text", "it is empty", "Type a sentence.")
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    experts: list[list[int]] = [[] for _ in range(plan.layers)]

    def seen(layer: int, batch: int, chosen: Tensor, weights: Tensor) -> None:
        experts[layer] = chosen[len(start) :, 0].tolist()

    run(plan, open_folder(path), [torch.tensor([start + ids])], device, seen)
    words = _cut(text, read["offset_mapping"]) if tokenizer.is_fast else _decoded(tokenizer, ids)
    return words[: len(ids)], experts


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Cut a text by the places that its tokens are made of; what lies between two of these goes to the second."""
    words, done = [], 0
    for i, (_, end) in enumerate(spans):
        # a character that goes on in the next token is the next one's
        stop = len(text) if i + 1 == len(spans) else max(done, min(end, spans[i + 1][0]))
        words.append(text[done:stop])
        done = stop
    return words


def _decoded(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Write tokens as text, one by one, where the tokenizer doesn't tell their places."""
    words, done = [], ""
    for i in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:i])
        whole = text.rstrip("\ufffd") if i < len(ids) else text  # a character's first bytes wait for its last
        words.append(whole[len(done) :])
        done = whole if len(whole) > len(done) else done
    return words


def read_texts(path: Path) -> Texts:
    """Read texts to measure on.

    Args:
        path: of a YAML (or JSON) file: a list of texts for each expert, in the recipe's order, or by the experts' names
            or numbers.

    Raises:
        LazyMoEError: if the file can't be read or isn't that.
    """
    try:
        texts = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        raise error("input.texts", path, "the texts can't be read", "Name a YAML file.") from None
    except RecipeError as e:
        raise failure([replace(problem, code="input.texts") for problem in e.problems]) from None
    if isinstance(texts, dict):
        texts = {key: [domain] if isinstance(domain, str) else domain for key, domain in texts.items()}
    domains = texts.values() if isinstance(texts, dict) else texts if isinstance(texts, list) else [None]
    if not all(isinstance(domain, list) and all(isinstance(text, str) for text in domain) for domain in domains):
        what = "this isn't a list of lists of texts, nor one list for each name of an expert"
        raise error("input.texts", path, what, "Give one list of texts for each expert.")
    return texts  # type: ignore[no-any-return]
