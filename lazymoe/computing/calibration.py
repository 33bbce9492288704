"""The importance matrix of a finished mixture, from its own prompts: they go through it, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lazymoe.checkpoint.opening import open_folder
from lazymoe.errors import error
from lazymoe.forward.inputs import Inputs
from lazymoe.forward.mixture import run
from lazymoe.forward.tokens import batches, load_tokenizer, pack
from lazymoe.planning.memory import LENGTH
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress
from lazymoe.quantizing.importance import gathered, write_importance

TOKENS = 8192  # that are read, at most


@torch.no_grad()
def calibrate(prepared: Prepared, folder: Path, file: Path, device: str, progress: Progress) -> None:
    """Write the importance matrix of a finished mixture.

    Args:
        prepared: its recipe.
        folder: the mixture's.
        file: where the matrix goes.
        device: where to compute.
        progress: told of the layers done, stage ``imatrix``.

    Raises:
        SourceError: if its tokenizer can't be loaded, or a state becomes NaN or infinite.
        LazyMoEError: if its tokenizer makes no token of the prompts.
    """
    plan, mixture = prepared.sound_plan, open_folder(folder)
    tokenizer = load_tokenizer(mixture)
    packed = [pack(tokenizer, expert.positive).sequences for expert in prepared.prompts.experts]
    sequences = [s for several in evenly(packed, TOKENS // LENGTH) for s in several if len(s)]
    if not sequences:
        what = "the mixture's tokenizer makes no token of the recipe's prompts"
        raise error("input.imatrix", folder, what, "Give a matrix with --imatrix FILE, or --no-imatrix.")
    texts = batches(sequences)
    inputs = Inputs([real for _, real in texts], device)

    def seen(layer: int, batch: int, *_: Tensor) -> None:
        if batch == 0:
            progress("imatrix", layer, plan.layers)

    stream = run(plan, mixture, [ids for ids, _ in texts], device, seen, inputs)
    head = plan.dense.head_in(plan.sources[0].tensors)
    inputs.body([head], list(stream.finish()).__getitem__)
    progress("imatrix", plan.layers, plan.layers)
    write_importance(file, gathered(plan, inputs), "the recipe's prompts", [len(s) for s in sequences])


def evenly(groups: Sequence[Sequence[Tensor]], most: int) -> list[list[Tensor]]:
    """Choose sequences, as many of each group as may be if each is to have its share, from all over it.

    Args:
        groups: that sequences are chosen from.
        most: how many to choose of all together, at most; but one of each group.
    """
    share = max(1, most // max(1, sum(map(bool, groups))))
    return [
        [group[i * len(group) // share] for i in range(share)] if len(group) > share else list(group)
        for group in groups
    ]
