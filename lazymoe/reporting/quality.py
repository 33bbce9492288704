"""How good a mixture's GGUF files are: what llama.cpp says of texts' tokens, beside what the mixture in 16 bit does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lazymoe.checkpoint.opening import open_folder
from lazymoe.errors import error
from lazymoe.files import absolute, write_whole
from lazymoe.forward.device import pick_device
from lazymoe.forward.llama import Told, tell
from lazymoe.forward.losses import mixture_told
from lazymoe.forward.tokens import load_tokenizer, windows
from lazymoe.output.folder import is_finished, read_record, reopen
from lazymoe.output.quantized import ENDING, QUALITY, Measured, Quality, Quantized, joined, open_quantized
from lazymoe.planning.prepared import prepare
from lazymoe.progress import Progress, silent
from lazymoe.reporting.measuring import Texts, by_expert


def report_gguf(
    path: str | os.PathLike[str],
    texts: Texts | None = None,
    *,
    mixture: str | os.PathLike[str] | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Quality:
    """Measure the GGUF files of a mixture with llama.cpp, and keep the result beside them for their card.

    Args:
        path: their folder, or one file in it.
        texts: as `lazymoe.report` takes them.
        mixture: the folder of the same mixture in 16 bit, to compare with; by default one beside theirs, by their name
            without ``-GGUF``. It is run a layer at a time; where there is none, losses alone are measured.
        device: where that is computed; a CUDA device if there is one by default.
        progress: told of the models done, stage ``measure``.

    Returns:
        What was measured, of these files and before of others on the same texts.

    Raises:
        OutputError: if the folder isn't one of GGUF files, or the mixture isn't theirs.
        LazyMoEError: if the recipe's models or prompts can't be read, an expert has no texts, or llama.cpp isn't
            installed or can't run a file.
    """
    found = absolute(path)
    quantized = open_quantized(found.parent if found.is_file() else found)
    kinds = [kind for kind, files in quantized.files.items() if found in files or found == quantized.folder]
    if not kinds:
        what = "there are no whole GGUF files" if found == quantized.folder else "this isn't one of its whole files"
        raise error("output.unfinished", found, what, "Write them with 'lazymoe gguf'.")
    whole, device = _mixture_of(quantized, mixture), pick_device(device)
    told_of = quantized.mixture
    prepared = reopen(whole) if whole else prepare(told_of.recipe, allow_pickle=told_of.record.allow_pickle)
    plan = prepared.sound_plan
    names = prepared.recipe.names
    given = by_expert(texts or [expert.positive for expert in prepared.prompts.experts], names)
    source = open_folder(whole) if whole else plan.sources[0]
    batches = [windows(load_tokenizer(source), domain) for domain in given]
    if short := [name for name, (_, real) in zip(names, batches, strict=True) if real.sum() < 2]:
        what = f"those for {', '.join(short)} are too short: they have no token that follows another"
        raise error("input.texts", "texts", what, "Give whole sentences.")

    rows = [[row[places].numpy() for row, places in zip(ids, real, strict=True)] for ids, real in batches]
    ends = np.cumsum([sum(len(row) - 1 for row in domain) for domain in rows])[:-1]  # where domains end
    flat = [row for domain in rows for row in domain]
    told: dict[str, Told] = {}
    for done, kind in enumerate(kinds):
        progress("measure", done, len(kinds) + bool(whole))
        told[kind] = tell(quantized.files[kind][0], flat)
    exact = _together(mixture_told(plan, source, batches, device)) if whole else None
    progress("measure", len(kinds) + bool(whole), len(kinds) + bool(whole))

    def losses(of: Told) -> list[float]:
        return [float(-part.mean(dtype=np.float64)) for part in np.split(of.known, ends)]

    types = {
        kind: Measured(
            losses=losses(of),
            apart=float(np.abs(exact.known - of.known).mean(dtype=np.float64)) if exact else None,
            same=float((exact.best == of.best).mean()) if exact else None,
            stamps=quantized.stamps(kind),
        )
        for kind, of in told.items()
    }
    quality = Quality(
        names=names,
        held_out=texts is not None,
        texts=_digest(batches),
        exact=losses(exact) if exact else None,
        types=types,
    )
    before = quantized.quality.to_dict() if quantized.quality else {}
    quality = joined(quality, before, {kind: quantized.stamps(kind) for kind in quantized.files}) or quality
    write_whole(quantized.folder / QUALITY, json.dumps(quality.to_dict(), indent=2) + "\n")
    return quality


def _mixture_of(quantized: Quantized, given: str | os.PathLike[str] | None) -> Path | None:
    """Find the mixture in 16 bit that files are of; None if it isn't beside them, and none is given.

    Raises:
        OutputError: if what is given isn't that.
    """
    folder = quantized.folder
    whole = absolute(given) if given else folder.with_name(folder.name.removesuffix(ENDING))
    fits = is_finished(whole) and read_record(whole).fingerprint == quantized.mixture.record.fingerprint
    if given and not fits:
        what = f"this isn't the mixture that the files in {folder} are of"
        raise error("output.taken", whole, what, "Name its folder, or leave --mixture out.")
    return whole if fits else None


def _together(told: Sequence[Told]) -> Told:
    known, best = zip(*told, strict=True)
    return Told(np.concatenate(known), np.concatenate(best))


def _digest(batches: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Tell texts from others, by their tokens."""
    counts = hashlib.sha256()
    for ids, real in batches:
        counts.update(str(ids[real].tolist()).encode())
    return counts.hexdigest()
