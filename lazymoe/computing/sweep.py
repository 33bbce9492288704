"""One pass of the experts' prompts through the mixture that makes the mixture on its way: layer after layer its shared
weights are merged and its router is fitted, both by what the mixture itself reads there, and then it is run.

In a layer, norms are averaged first. What query, key and value maps read is taken, and these are merged; what the map
after attention reads is taken, and that is merged; the router is fitted on what it reads, and the experts run, each
corrected first if that is wanted, for which its own model's layer runs too. The head comes last, by the last states;
until then tied embeddings are the plain average. Each tensor is written as it is read or made, so that every byte is
brought once. After each layer the states are kept, so that a sweep that was stopped goes on there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lazymoe.checkpoint.tensors import InMemory
from lazymoe.computing.groups import read_groups, tokens_of
from lazymoe.computing.order import canonical
from lazymoe.computing.places import Each, Here, Passing, Places
from lazymoe.computing.shared_weights import Average, in_blocks, means, merge_head
from lazymoe.computing.walk import Walk, merge_read, unknown
from lazymoe.forward.inputs import Inputs
from lazymoe.forward.routing import Routing
from lazymoe.memory import give_back
from lazymoe.output.writer import Sink
from lazymoe.planning.memory import kept_models, late_embeddings, reads_prompts
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

Weigh = Callable[[Inputs], None]  # told what maps have read so far, before these are written


@torch.no_grad()
def sweep(
    recipe: Recipe,
    plan: Plan,
    writer: Sink[Any],
    folder: Path,
    device: str,
    progress: Progress,
    weigh: Weigh | None = None,
    places: Places | None = None,
) -> tuple[Tensor | None, Routing | None]:
    """Work out the shared weights and, where they are fitted, the routers, and write the layers on the way.

    Args:
        recipe, plan: what is wanted; the sources must be on the disk, or be read from the Hub.
        writer: where tensors go; what is there is kept. Routers that aren't fitted are among what it has computed.
        folder: for the states.
        device: where to compute.
        progress: told of the layers done, stage ``sweep``.
        weigh: what is told how much columns count, if anybody wants to know: the plan is ``weighted`` then. A layer is
            written when it has run, not while it is read.
        places: where the experts' part of the work is done; here by default.

    Returns:
        The fitted rows of each layer ``[L, gates, H]``, float32, see `Plan.gates`; None if they aren't fitted. And
        where the tokens of each expert's prompts went; None if no prompts are read.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded, or a state or a merged weight is NaN or infinite.
    """
    order, places = canonical(recipe, plan), places or Here(plan.sources)

    def take(number: int, name: str, tensor: Any) -> None:
        if not plan.weighted:
            writer.pass_by(number, name, [tensor])

    each = functools.partial(places.each, take=take)
    kept: list[InMemory] = []
    if reads_prompts(recipe, plan):
        plan, kept = _in_memory(plan, plan.dense.embeddings, each)
    average = Average(plan, order)
    groups = read_groups(recipe, plan, order, device)
    late = late_embeddings(plan)
    outside = [name for name in plan.dense.outer if name in average.tensors] if plan.shared != "base" else []
    embeddings, head = plan.dense.embeddings, None
    if plan.shared == "regmean":
        head = plan.dense.head if plan.dense.head in outside else embeddings
    if not late and plan.shared == "base":  # embeddings come first in the output, all others outside the layers last
        writer.pass_by(0, embeddings, in_blocks(plan.sources[0], embeddings))
    elif not late:
        writer.give(0, embeddings, means(average, embeddings, tokens_of(groups)))
    walk = Walk(recipe, plan, writer, folder, average, groups, order, device, each, take) if groups else None
    if not late:
        average.noted.clear()
        for reader in kept:
            reader.values = None
    for layer in range(walk.resume() if walk else 0, plan.layers):
        if walk:
            walk.step()
            if weigh and walk.inputs:
                weigh(walk.inputs)
            walk.give()
        elif plan.shared == "regmean":
            maps = [plan.dense.within(layer) + name for name in plan.dense.linear(layer, plan.sources[0].config)]
            merge_read(average, plan, [name for name in maps if not writer.has(0, name)], None, device, each)
        for name in _shared(plan, layer) if plan.shared != "base" else ():
            writer.give(0, name, map(average.load, [name]))  # unless it is there
        average.made.clear()
        writer.finish(plan.dense.within(layer))
        writer.keep()
        if walk:
            walk.keep()
        give_back()
        progress("sweep", layer + 1, plan.layers)
    if walk and walk.inputs and weigh:
        walk.inputs.body([plan.dense.head_in(average.tensors)], list(walk.stream.finish()).__getitem__)
        weigh(walk.inputs)
    if late and plan.shared == "base":
        writer.pass_by(0, embeddings, in_blocks(plan.sources[0], embeddings))
    for name in outside:
        if name != head:
            writer.give(0, name, means(average, name))
        elif not writer.has(0, name):
            reads = (walk and walk.read_at_end()) or unknown(plan)
            writer.give(0, name, merge_head(average, name, reads, device, each))
    return (walk.fitted, walk.routing) if walk else (None, None)


def _in_memory(plan: Plan, name: str, each: Each) -> tuple[Plan, list[InMemory]]:
    """Read a tensor of the `kept_models`: whoever asks for it has it from memory, until that is let go."""
    sources = list(plan.sources)
    having = [n for n, source in enumerate(kept_models(plan)) if source.has(name)]
    readers = []
    for number, [read] in zip(having, each(_whole, ((n, (name,)) for n in having)), strict=True):
        tensor = sources[number].tensor(name)
        readers.append(InMemory(read.reshape(-1), tensor))
        held = replace(tensor, reader=readers[-1], start=0)
        sources[number] = replace(sources[number], tensors={**sources[number].tensors, tensor.name: held})
    return replace(plan, sources=tuple(sources)), readers


def _whole(model: Passing, name: str) -> Iterator[Tensor]:
    """Read a tensor."""
    yield model.load(name)


def _shared(plan: Plan, layer: int) -> list[str]:
    """Name the tensors of a layer that all experts share, as the sources name them."""
    return [plan.dense.within(layer) + name for name in plan.dense.layer_shapes(layer, plan.sources[0].config)]
