"""A layer's feed-forward network as a mixture: the experts' own weights, one expert in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lazymoe.plan import Plan


def module_name(plan: Plan) -> str:
    """What transformers calls a dense layer's feed-forward module."""
    return plan.dense.ffn["down"][0].split(".")[0]


def route(gates: Tensor, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The experts that each token goes to and their weights, ``[n, k]`` both: softmax over the chosen ones' logits.

    Args:
        gates: one layer's router ``[E, H]``.
        x: what it reads ``[n, H]``.
    """
    logits, chosen = (x @ gates.T).topk(top_k, dim=-1)
    return chosen, logits.softmax(-1)


def mix(
    load: Callable[[int, nn.Module], None],
    module: nn.Module,
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    order: Sequence[int],
) -> Tensor:
    """The output of a mixture ``[n, H]``.

    Args:
        load: gives the module the weights of an expert.
        module: the dense layer's feed-forward module.
        x: its input ``[n, H]``.
        chosen, weights: experts of each token and their weights ``[n, k]``.
        order: the order in which experts are added up.
    """
    out = torch.zeros_like(x)
    for expert in order:
        token, place = (chosen == expert).nonzero(as_tuple=True)
        if len(token):
            load(expert, module)
            out.index_add_(0, token, type(module).forward(module, x[token]) * weights[token, place, None])
    return out
