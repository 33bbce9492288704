"""Routers: from (recipe, plan) to gates ``[layers, experts, hidden]``, and a look at whether they can work.

One file for each method; those that need activations share the layer-streamed pass in `stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lazymoe.errors import Problem
from lazymoe.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe import Recipe
from lazymoe.write import generator

if TYPE_CHECKING:
    import torch

PARALLEL = 0.95  # cosine above which two rows send nearly the same tokens to both experts


def make_gates(recipe: Recipe, plan: Plan, seed: int, device: str | None, progress: Progress) -> torch.Tensor:
    """The routers that a recipe asks for: ``[layers, experts, hidden]``, float32, on the CPU.

    Args:
        recipe, plan: what is wanted; sources must be on the disk for the modes that read prompts.
        seed: of the random modes.
        device: where activations are computed; a CUDA device if there is one by default.
        progress: told of the layers done.
    """
    if recipe.gate_mode in ("random", "uniform_random"):
        from lazymoe.router.random import random_gates

        return random_gates(recipe.gate_mode, plan.layers, plan.experts, plan.hidden_size, generator(seed, "router"))
    import torch

    from lazymoe.router.prompts import prompt_gates

    return prompt_gates(recipe, plan, device or ("cuda" if torch.cuda.is_available() else "cpu"), progress).cpu()


def degenerate(gates: torch.Tensor) -> Iterator[Problem]:
    """Pairs of experts that the routers can hardly tell apart, with the layers where that is so."""
    from torch.nn.functional import normalize

    rows = normalize(gates.float(), dim=-1)
    parallel = rows @ rows.mT > PARALLEL  # [L, E, E]
    for a in range(gates.shape[1]):
        for b in range(a + 1, gates.shape[1]):
            layers = parallel[:, a, b].nonzero().flatten().tolist()
            if layers:
                yield Problem(
                    f"experts {a + 1} and {b + 1}",
                    f"in {_layers(layers, len(gates))} the router can hardly tell "
                    "them apart, so both get nearly the same tokens",
                    "Give them prompts that differ more: whole questions of the kind each should answer.",
                )


def _layers(layers: list[int], of: int) -> str:
    """A list of layers as people write it: ``layers 0-3 and 7``."""
    if len(layers) == of:
        return "all layers"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"layer{'s' * (len(layers) > 1)} {listed}"
