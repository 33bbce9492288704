"""Routers made from prompts the way mergekit-moe makes them, one vector for each expert and layer.

`hidden`, `hidden_last`: the residual stream at a layer's input, at a prompt's last token. `hidden_avg`: its mean over
the prompt's tokens. `cheap_embed`: the sum of the prompt's embeddings, the same for all layers. Each is averaged over
the positive prompts, less the average over the negative ones, and scaled to length 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import batches, load_tokenizer, tokenize
from lazymoe.planning.memory import ROUND
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

Group = tuple[int, int]  # the expert that a text belongs to, and whether it should reach it (0) or not (1)


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
    texts: list[str] = []
    groups: list[Group] = []
    for i, asked in enumerate(recipe.every_expert[: plan.gates]):
        positive = asked.positive or [""] * (not asked.negative)  # as mergekit: the beginning of any text
        for side, prompts in enumerate((positive, asked.negative)):
            texts += prompts
            groups += [(i, side)] * len(prompts)
    base = plan.sources[0]
    tokens = tokenize(load_tokenizer(base), texts)
    some = sorted((t for t in range(len(tokens)) if len(tokens[t])), key=lambda t: len(tokens[t]))  # not those of none
    tokens, groups = [tokens[t] for t in some], [groups[t] for t in some]
    if recipe.gate_mode == "cheap_embed":
        # as mergekit: prompts are summed and the sum is scaled, so that longer prompts weigh more
        summed = _summed_embeddings(base, tokens, groups, plan.gates)
        return _combine(summed, groups, normalise_parts=True).repeat(plan.layers, 1, 1)

    # a round of texts through all layers after the other: only the states of one round are kept
    mean = recipe.gate_mode == "hidden_avg"
    vectors = torch.zeros(plan.layers, plan.gates, 2, plan.hidden_size)  # summed over the texts of a group
    rounds = list(_rounds([len(t) for t in tokens]))
    for done, (start, stop) in enumerate(rounds):
        texts_of_round = batches(tokens[start:stop])
        stream = Stream(base, [ids for ids, _ in texts_of_round], device)
        for layer in range(plan.layers):
            text = start
            for hidden, (_, real) in zip(stream.states, texts_of_round, strict=True):
                for row, length in zip(hidden, real.sum(1).tolist(), strict=True):  # row: [T, H]
                    vector = row[:length].mean(0) if mean else row[length - 1]
                    expert, side = groups[text]
                    vectors[layer, expert, side] += vector.cpu()
                    text += 1
            if layer + 1 < plan.layers:
                stream.step()
            progress("route", done * plan.layers + layer + 1, len(rounds) * plan.layers)
    return _combine(vectors, groups)


def _summed_embeddings(base: Source, tokens: Sequence[Tensor], groups: Sequence[Group], gates: int) -> Tensor:
    """Sum the embeddings of all tokens of each group of prompts: ``[1, gates, 2, H]``."""
    ids, places = torch.unique(torch.cat(list(tokens)), return_inverse=True)
    embeddings = base.rows(base.embeddings, ids.tolist()).float()  # [tokens that there are, H]
    summed = torch.zeros(1, gates, 2, embeddings.shape[1])
    for (expert, side), text in zip(groups, places.split([len(t) for t in tokens]), strict=True):
        summed[0, expert, side] += embeddings[text].sum(0)
    return summed


def _combine(vectors: Tensor, groups: Sequence[Group], normalise_parts: bool = False) -> Tensor:
    """Take each expert's negative mean from its positive one: sums ``[L, gates, 2, H]`` to ``[L, gates, H]``, of
    length 1."""
    counts = Counter(groups)
    rows = torch.zeros_like(vectors[:, :, 0])  # [L, gates, H]
    for (expert, side), texts in counts.items():
        part = vectors[:, expert, side] / texts
        rows[:, expert] += (-1) ** side * (torch.nn.functional.normalize(part, dim=-1) if normalise_parts else part)
    return torch.nn.functional.normalize(rows, dim=-1)


def _rounds(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first text and the one after the last of each round: of up to `ROUND` tokens, or of one text."""
    start = tokens = 0
    for text, length in enumerate(lengths):
        if text > start and tokens + length > ROUND:
            yield start, text
            start, tokens = text, 0
        tokens += length
    yield start, len(lengths)
