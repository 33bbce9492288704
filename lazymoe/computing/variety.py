"""Copies of short prompts with other tokens in place of some: they tell a router, and an expert that is corrected, of a
kind of text, not of a few words.

The words that take their places are the expert's own: its embeddings tell which tokens it was trained on. Where they
are the head too, training lowers the rows of all tokens that don't occur, together, in the direction of what the head
mostly reads, and those that went furthest the other way are of tokens that the expert has learnt to say. Where they
aren't, the rows that moved furthest are of tokens that it has read most. Where they tell nothing, as they weren't
trained or the expert is quantized, and in prompts that aren't an expert's, a token gives way to one of those that are
nearest to it in the base model's embeddings, which often mean the like.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lazymoe.checkpoint.source import Source
from lazymoe.computing.shared_weights import read_rows
from lazymoe.planning.memory import ROWS

REPLACED = 0.6  # of a copy's tokens
NEAR = 16  # tokens that one may give way to
COMMON = 16384  # tokens at the head of a vocabulary, where the most frequent ones are: no others take a place
AT_ONCE = 1024  # tokens that are compared with a block of rows
FIRST = 8192  # rows of an expert's embeddings that are looked at
WORDS = 300  # that an expert has learnt
TOGETHER = 0.1  # of the mean square of what was changed in rows, that of their mean: trained heads have 0.5, noise none
APART = 4  # times the median, relative to the rows, are the squares of what was changed most: noise has them all alike
TINY = 1e-12

Others = Callable[[int], Sequence[int]]  # gives what a token may give way to


def words(base: Source, expert: Source, most: int) -> list[int]:
    """Find the tokens that an expert has learnt, of those that are most frequent; none if its embeddings don't tell.

    Args:
        base: the base model.
        expert: a fine-tuned model, whose tokens are numbered as the base model's.
        most: how many rows of its embeddings may be read, the first ones.
    """
    shapes = [model.tensor(base.embeddings).shape for model in (base, expert)]
    rows, width = min(FIRST, most, *(length for length, _ in shapes)), shapes[0][1]
    wanted = min(WORDS, rows // NEAR)
    if wanted < NEAR:
        return []
    mean, along, size = torch.zeros(width), torch.empty(rows), torch.empty(rows)  # [H], [rows], [rows]
    square = 0.0
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        own, theirs = (read_rows(model, base.embeddings, start, stop).float() for model in (base, expert))
        changed = theirs - own  # [ROWS, H]
        if not start:
            mean, square = changed.mean(0), float(changed.square().sum(1).mean())
        along[start:stop] = changed @ mean
        size[start:stop] = changed.square().sum(1) / own.square().sum(1).clamp(min=TINY)
    if not torch.isfinite(along).all():
        return []
    if float(mean.square().sum()) > TOGETHER * square:
        return along.topk(wanted, largest=False).indices.tolist()
    found = size.topk(wanted)
    return found.indices.tolist() if float(found.values.mean()) > APART * float(size.median()) else []


def nearest(base: Source, tokens: Tensor, device: str) -> dict[int, list[int]]:
    """Find the nearest of each token, by the cosine of their embeddings, some rows of these at a time.

    Args:
        base: the base model.
        tokens: ids of those that there are in the prompts, int64, in any number.
        device: where to compute.
    """
    tokens, rows = torch.unique(tokens), min(COMMON, base.tensor(base.embeddings).shape[0])  # [n]
    numbers = tokens.to(device)[:, None]  # [n, 1]
    own = normalize(base.rows(base.embeddings, tokens.tolist()).float().to(device), dim=-1)  # [n, H]
    best = torch.full((len(own), NEAR), -torch.inf, device=device)
    near = numbers.repeat(1, NEAR)  # if nothing else is, it stays itself
    for start in range(0, rows, ROWS):
        stop = min(start + ROWS, rows)
        block = read_rows(base, base.embeddings, start, stop).float().to(device)  # [ROWS, H]
        others, found = normalize(block, dim=-1), torch.arange(start, stop, device=device)
        parts = (t.split(AT_ONCE) for t in (numbers, own, best, near))
        for number, x, cosines, kept in zip(*parts, strict=True):
            new = (x @ others.T).masked_fill_(found == number, -torch.inf)  # [AT_ONCE, ROWS]
            nearer, places = torch.cat([cosines, new], 1).topk(NEAR, dim=1)
            kept.copy_(torch.cat([kept, found.expand(len(x), -1)], 1).gather(1, places))
            cosines.copy_(nearer)
    return dict(zip(tokens.tolist(), near.tolist(), strict=True))


def copies(sequences: Sequence[Tensor], others: Others) -> list[Tensor]:
    """Copy sequences, with other tokens in place of some; the first, which may begin every text, stays.

    Args:
        sequences: token ids ``[T]``, int64.
        others: what each may give way to.
    """
    chance = random.Random(0)

    def other(token: int) -> int:
        return chance.choice(others(token)) if chance.random() < REPLACED else token

    return [torch.tensor([first, *map(other, rest)]) for first, *rest in (s.tolist() for s in sequences)]
