"""Routers made from prompts the way mergekit-moe makes them, one vector for each expert and layer.

`hidden`, `hidden_last`: the residual stream at a layer's input, at a prompt's last token. `hidden_avg`: its mean over
the prompt's tokens. `cheap_embed`: the sum of the prompt's embeddings, the same for all layers. Each is averaged over
the positive prompts, less the average over the negative ones, and scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lazymoe.checkpoint.source import EMBEDDINGS
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import load_tokenizer, tokenize
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

BATCH = 2048  # tokens, with padding, that go through a layer at a time


def prompt_gates(recipe: Recipe, plan: Plan, device: str, progress: Progress) -> Tensor:
    """Make routers of prompts, as mergekit does (https://github.com/arcee-ai/mergekit/blob/main/docs/moe.md).

    Args:
        recipe, plan: what is wanted; the base model must be on the disk.
        device: where to compute.
        progress: told of the layers done, stage ``route``; of none for `cheap_embed`.

    Returns:
        The rows of each layer ``[L, gates, H]``, float32, each of length 1; see `Plan.gates`.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded, or a state becomes NaN or infinite.
    """
    texts, groups = [], []  # groups[t]: which expert a text belongs to, and whether it should reach it
    for i, expert in enumerate(recipe.every_expert[: plan.gates]):
        positive = expert.positive or [""] * (not expert.negative)  # as mergekit: the beginning of any text
        for sign, prompts in ((1, positive), (-1, expert.negative)):
            texts += prompts
            groups += [(i, sign)] * len(prompts)
    base = plan.sources[0]
    tokens = tokenize(load_tokenizer(base), texts)
    some = [t for t in range(len(tokens)) if len(tokens[t])]  # a text may come to no token at all
    tokens, groups = [tokens[t] for t in some], [groups[t] for t in some]
    if recipe.gate_mode == "cheap_embed":
        ids = torch.cat(tokens)
        unique, places = torch.unique(ids, return_inverse=True)
        embeddings = base.rows(EMBEDDINGS, unique.tolist()).float()[places]  # [tokens, H]
        summed = [part.sum(0) for part in embeddings.split([len(t) for t in tokens])]
        # as mergekit: prompts are summed and the sum is scaled, so that longer prompts weigh more
        rows = _combine(torch.stack(summed)[None], groups, plan.gates, normalise_parts=True)  # [1, E, H]
        return rows.repeat(plan.layers, 1, 1)

    order = sorted(range(len(tokens)), key=lambda t: len(tokens[t]))
    batches = _batches([tokens[t] for t in order])
    layers = []
    stream = Stream(base, [padded for padded, _ in batches], device)
    for layer in range(plan.layers):
        vectors = torch.empty(len(tokens), plan.hidden_size)
        done = 0
        for hidden, (_, lengths) in zip(stream.states, batches, strict=True):
            for row, length in zip(hidden, lengths, strict=True):  # row: [T, H]
                mean = recipe.gate_mode == "hidden_avg"
                vectors[order[done]] = row[:length].mean(0) if mean else row[length - 1]
                done += 1
        layers.append(vectors)
        if layer + 1 < plan.layers:
            stream.step()
        progress("route", layer + 1, plan.layers)
    return _combine(torch.stack(layers), groups, plan.gates)


def _combine(vectors: Tensor, groups: Sequence[tuple[int, int]], experts: int, normalise_parts: bool = False) -> Tensor:
    """Take each expert's negative mean from its positive one: ``[L, texts, H]`` to ``[L, experts, H]``, of length 1."""
    rows = []
    for expert in range(experts):
        row = torch.zeros_like(vectors[:, 0])  # [L, H]
        for sign in (1, -1):
            if members := [t for t, group in enumerate(groups) if group == (expert, sign)]:
                part = vectors[:, members].mean(1)
                row += sign * (torch.nn.functional.normalize(part, dim=-1) if normalise_parts else part)
        rows.append(torch.nn.functional.normalize(row, dim=-1))
    return torch.stack(rows, 1)


def _batches(tokens: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Group texts, sorted by length, into right-padded batches ``[B, T]`` with their lengths."""
    groups: list[list[Tensor]] = []
    for t in tokens:
        if not groups or (len(groups[-1]) + 1) * len(t) > BATCH:
            groups.append([])
        groups[-1].append(t)
    return [(torch.nn.utils.rnn.pad_sequence(g, batch_first=True), [len(t) for t in g]) for g in groups]
