"""Copies of short prompts with other tokens in place of some, so that a router learns a kind of text, not a few words.

A token gives way to one of those that are nearest to it in the base model's embeddings, which often mean the like.
Prompts that are read several times are read as copies every second time, so that this costs no token more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lazymoe.checkpoint.source import Source
from lazymoe.planning.memory import ROWS

REPLACED = 0.6  # of a copy's tokens
NEAR = 16  # tokens that one may give way to
COMMON = 16384  # tokens at the head of a vocabulary, where the most frequent ones are: no others take a place
AT_ONCE = 1024  # tokens that are compared with a block of rows


class Variety:
    """What the tokens of some prompts may give way to."""

    def __init__(self, base: Source, tokens: Tensor, device: str) -> None:
        """Find the nearest of each token, by the cosine of their embeddings, some rows of these at a time.

        Args:
            base: the base model.
            tokens: ids of those that there are in the prompts, int64, in any number.
            device: where to compute.
        """
        table, tokens = base.tensor(base.embeddings), torch.unique(tokens)  # [n]
        rows, width = min(COMMON, table.shape[0]), table.shape[1]
        numbers = tokens.to(device)[:, None]  # [n, 1]
        own = normalize(base.rows(base.embeddings, tokens.tolist()).float().to(device), dim=-1)  # [n, H]
        nearest = torch.full((len(own), NEAR), -torch.inf, device=device)
        near = numbers.repeat(1, NEAR)  # if nothing else is, it stays itself
        for start in range(0, rows, ROWS):
            stop = min(start + ROWS, rows)
            block = table.read(start * width, stop * width).float().to(device).view(-1, width)  # [ROWS, H]
            others, found = normalize(block, dim=-1), torch.arange(start, stop, device=device)
            parts = (t.split(AT_ONCE) for t in (numbers, own, nearest, near))
            for number, x, cosines, kept in zip(*parts, strict=True):
                new = (x @ others.T).masked_fill_(found == number, -torch.inf)  # [AT_ONCE, ROWS]
                best, places = torch.cat([cosines, new], 1).topk(NEAR, dim=1)
                kept.copy_(torch.cat([kept, found.expand(len(x), -1)], 1).gather(1, places))
                cosines.copy_(best)
        self._near = dict(zip(tokens.tolist(), near.tolist(), strict=True))

    def copies(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Copy a group's sequences, with other tokens in place of some.

        Args:
            sequences: token ids ``[T]``, int64.
        """
        chance = random.Random(0)
        return [torch.tensor([self._other(token, chance) for token in s.tolist()]) for s in sequences]

    def _other(self, token: int, chance: random.Random) -> int:
        return chance.choice(self._near[token]) if chance.random() < REPLACED else token
