"""The prompts that a sweep reads, as tokens: by whose they are, and whether they should reach that expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lazymoe.forward.tokens import batches, load_tokenizer, pack
from lazymoe.planning.memory import reads_states
from lazymoe.planning.plan import Plan
from lazymoe.recipe.schema import Recipe


@dataclass(frozen=True)
class Group:
    """Prompts of one expert and one kind.

    Attributes:
        place: of the expert in the order in which experts are added up; of the shared one, how many these are.
        sign: 1 if they should reach it, -1 if any other.
        batches: token ids, int64, and which of their places are real, bool, both ``[B, T]``.
    """

    place: int
    sign: int
    batches: Sequence[tuple[Tensor, Tensor]]


def read_groups(recipe: Recipe, plan: Plan, order: Sequence[int]) -> list[Group]:
    """Tokenize the prompts that a sweep reads: all where routers are fitted, the positive ones where shared weights are
    merged, none where neither is so.

    Args:
        recipe, plan: what is wanted; the base model must be on the disk.
        order: the experts' numbers, in the order in which they are added up.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded.
    """
    fitted = recipe.gate_mode == "fit"
    if not fitted and not reads_states(recipe, plan):
        return []
    tokenizer = load_tokenizer(plan.sources[0])
    gated = [plan.experts] if fitted and plan.gates > plan.experts else []  # the shared expert, by its number
    found = []
    for place, number in enumerate([*order, *gated]):
        asked = recipe.every_expert[number]
        for sign, texts in ((1, asked.positive), (-1, asked.negative if fitted else [])):
            if texts:
                found.append(Group(place, sign, batches(pack(tokenizer, texts))))
    return found
