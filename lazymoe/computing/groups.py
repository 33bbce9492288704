"""The prompts that a sweep reads, as tokens: by whose they are, and whether they should reach that expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from lazymoe.computing.variety import Variety
from lazymoe.forward.tokens import batches, load_tokenizer, pack
from lazymoe.planning.memory import LIMIT, reads_prompts
from lazymoe.planning.plan import Plan
from lazymoe.recipe.schema import Recipe

FEW = 32  # tokens of prompts that are keywords: with other tokens in their place they would mean something else


@dataclass(frozen=True)
class Group:
    """Prompts of one expert and one kind.

    Attributes:
        place: of the expert in the order in which experts are added up; of the shared one, how many these are.
        sign: 1 if they should reach it, -1 if any other.
        batches: token ids, int64, and which of their places are real, bool, both ``[B, T]``.
        tokens: how many the prompts have, as far as they are read.
        varied: whether these are copies with other tokens, see `variety`: to fit routers on, and for nothing else.
    """

    place: int
    sign: int
    batches: Sequence[tuple[Tensor, Tensor]]
    tokens: int
    varied: bool = False


def read_groups(recipe: Recipe, plan: Plan, order: Sequence[int], device: str) -> list[Group]:
    """Tokenize the prompts that a sweep reads: all where routers are fitted, every second time that short ones are
    read as copies of them; the positive ones where shared weights are merged or experts corrected; none where nothing
    of that is so.

    Args:
        recipe, plan: what is wanted; the base model must be on the disk.
        order: the experts' numbers, in the order in which they are added up.
        device: where to compute.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded.
    """
    fitted = recipe.gate_mode == "fit"
    if not reads_prompts(recipe, plan):
        return []
    tokenizer = load_tokenizer(plan.sources[0])
    gated = [plan.experts] if fitted and plan.gates > plan.experts else []  # the shared expert, by its number
    sides = [
        (place, sign, pack(tokenizer, texts))
        for place, number in enumerate([*order, *gated])
        for asked in [recipe.every_expert[number]]
        for sign, texts in ((1, asked.positive), (-1, asked.negative if fitted else []))
        if texts
    ]
    again = [packed.orders[1::2] if fitted and packed.given >= FEW else [] for *_, packed in sides]
    replaced = [s for orders in again for order in orders for s in order]
    variety = Variety(plan.sources[0], torch.cat(replaced), device) if replaced else None
    found = []
    for (place, sign, packed), others in zip(sides, again, strict=True):
        tokens = min(packed.given, LIMIT)
        own = packed.orders[::2] if others else packed.orders
        found.append(Group(place, sign, batches(list(chain(*own))), tokens))
        if variety and others:
            found.append(Group(place, sign, batches(variety.copies(list(chain(*others)))), tokens, varied=True))
    return found


def tokens_of(groups: Sequence[Group]) -> Tensor:
    """List the tokens that there are in prompts, and in what pads them, sorted ``[n]``.

    Args:
        groups: the prompts.
    """
    ids = [ids.flatten() for group in groups for ids, _ in group.batches]
    found: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *ids]))
    return found
