"""The order in which experts are added up: sums of floats depend on it."""

from __future__ import annotations

from lazymoe.planning.plan import Plan
from lazymoe.recipe.schema import Recipe


def canonical(recipe: Recipe, plan: Plan) -> list[int]:
    """Order the experts in a way that doesn't depend on how the recipe lists them, so that permuting them permutes the
    result exactly, though sums of floats depend on their order.

    Args:
        recipe, plan: what is wanted.

    Returns:
        The experts' numbers, from 0.
    """
    keys = [
        (e.positive, e.negative, source.fingerprint, e.residual_scale or 1, e.noise_scale or 0)
        for e, source in zip(recipe.experts, plan.expert_sources, strict=True)
    ]
    return sorted(range(plan.experts), key=lambda e: repr(keys[e]))
