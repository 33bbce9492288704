"""The prompts that a sweep reads, as tokens: by whose they are, and whether they should reach that expert."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import chain, combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lazymoe.computing.variety import copies, nearest, words
from lazymoe.forward.tokens import Packed, batches, load_tokenizer, pack
from lazymoe.planning.memory import LIMIT, reads_prompts, rows_twice
from lazymoe.planning.plan import Plan
from lazymoe.planning.vocabularies import same_tokens
from lazymoe.recipe.schema import Recipe

FEW = 32  # tokens of prompts that are keywords: with what is nearest in their place they would mean something else


@dataclass(frozen=True)
class Group:
    """Prompts of one expert and one kind.

    Attributes:
        place: of the expert in the order in which experts are added up; of the shared one, how many these are.
        sign: 1 if they should reach it, -1 if any other.
        batches: token ids, int64, and which of their places are real, bool, both ``[B, T]``.
        tokens: how many they have, as far as they are read, each prompt counted in one order alone.
        varied: whether these are copies with other tokens, see `variety`: to fit routers on and to correct experts by,
            and for nothing else.
    """

    place: int
    sign: int
    batches: Sequence[tuple[Tensor, Tensor]]
    tokens: int
    varied: bool = False


class _Side(NamedTuple):
    """Prompts of one expert and one kind, and the words that it has learnt, if they are to take places."""

    place: int
    sign: int
    packed: Packed
    words: list[int]

    @property
    def copied(self) -> list[Tensor]:
        """The sequences that there are copies of."""
        return list(chain(*self.packed.again)) if self.words or self.packed.given >= FEW else []


def read_groups(recipe: Recipe, plan: Plan, order: Sequence[int], device: str) -> list[Group]:
    """Tokenize the prompts that a sweep reads: all where routers are fitted, short ones half as copies of them; the
    positive ones where shared weights are merged or experts corrected; none where nothing of that is so.

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
    base, tokenizer = plan.sources[0], load_tokenizer(plan.sources[0])
    gated = [plan.experts] if fitted and plan.gates > plan.experts else []  # the shared expert, by its number
    asked = [
        (place, number, sign, packed if fitted else packed._replace(again=[]))
        for place, number in enumerate([*order, *gated])
        for expert in [recipe.every_expert[number]]
        for sign, texts in ((1, expert.positive), (-1, expert.negative if fitted else []))
        if texts
        for packed in [pack(tokenizer, texts)]
    ]
    short = {number for _, number, sign, packed in asked if sign > 0 and packed.again}
    said = _words(plan, short, tokenizer.all_special_ids)
    sides = [
        _Side(place, sign, packed, said.get(number, []) if sign > 0 else []) for place, number, sign, packed in asked
    ]
    lacking = [tokens for side in sides if not side.words for tokens in side.copied]
    near = nearest(base, torch.cat(lacking), device) if lacking else {}
    found = []
    for side in sides:
        copied, tokens = side.copied, min(side.packed.given, LIMIT)
        own = side.packed.orders[::2] if copied else side.packed.orders
        found.append(Group(side.place, side.sign, batches(list(chain(*own))), tokens))
        if copied:
            others = (lambda _, words=side.words: words) if side.words else near.__getitem__
            tokens = sum(map(len, copied))  # each is another, also of the same prompt
            found.append(Group(side.place, side.sign, batches(copies(copied, others)), tokens, varied=True))
    return found


def _words(plan: Plan, numbers: Set[int], special: Sequence[int]) -> dict[int, list[int]]:
    """Find the words that each of some experts has learnt, without special tokens, unless most of them are another's:
    then they wouldn't tell the two apart, least of all where both are one model."""
    base = plan.sources[0]
    # no embeddings are read for this alone: not those of shared experts, nor any if nothing is merged
    read = range(plan.experts) if plan.shared != "base" else range(0)
    experts = {n: plan.sources[n + 1] for n in read if n in numbers and same_tokens(base, plan.sources[n + 1])}
    found = {n: words(base, expert, rows_twice(plan, expert)) for n, expert in experts.items()}
    same = {n for a, b in combinations(found, 2) if 2 * len({*found[a]} & {*found[b]}) > len(found[a]) for n in (a, b)}
    return {n: [word for word in own if word not in special] for n, own in found.items() if n not in same}


def tokens_of(groups: Sequence[Group]) -> Tensor:
    """List the tokens that there are in prompts, and in what pads them, sorted ``[n]``.

    Args:
        groups: the prompts.
    """
    ids = [ids.flatten() for group in groups for ids, _ in group.batches]
    found: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *ids]))
    return found
