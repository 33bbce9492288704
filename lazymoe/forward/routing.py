"""Which experts a token goes to, what each counts for it, and how often that is whose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lazymoe.planning.plan import Plan

NEGLIGIBLE = 0.02  # an expert's weight for a token under which it isn't run where only the states are wanted


def route(gates: Tensor, x: Tensor, top_k: int, scores: str = "softmax") -> tuple[Tensor, Tensor]:
    """Route tokens: their top-k experts and the weights of these, which sum up to 1 for a token.

    With softmax as in Mixtral (https://arxiv.org/abs/2401.04088), with sigmoids as in DeepSeek-V3
    (https://arxiv.org/abs/2412.19437).

    Args:
        gates: one layer's router ``[E, H]``.
        x: what it reads ``[n, H]``.
        top_k: how many experts a token goes to.
        scores: what makes weights of the logits, see `Host.scores`.

    Returns:
        The experts, int64, and their weights, both ``[n, k]``, from the largest logit down.
    """
    logits, chosen = (x @ gates.T).topk(top_k, dim=-1)
    if scores == "softmax":
        return chosen, logits.softmax(-1)
    weights = logits.sigmoid()
    return chosen, weights / weights.sum(-1, keepdim=True)


def leave_out(chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out a token's experts that hardly count: the others' weights sum up to 1 again.

    As experts are fine-tunes of one model, that changes the states about as much as rounding to bfloat16 does.

    Args:
        chosen, weights: experts of each token and their weights ``[n, k]``.

    Returns:
        The same, -1 for an expert that is left out, and its weight 0.
    """
    kept = weights >= NEGLIGIBLE
    weights = weights * kept
    return chosen.where(kept, -1), weights / weights.sum(-1, keepdim=True)


def add_shared(plan: Plan, gate: Tensor, x: Tensor, chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Add the shared experts, if there are some, to what is chosen: each token goes to all of them.

    Args:
        plan: what the mixture is made by.
        gate: their gate ``[1, H]``, or of no rows where they have none.
        x: what it reads ``[n, H]``.
        chosen, weights: experts of each token and their weights ``[n, k]``.

    Returns:
        The same ``[n, k + S]``; the shared experts' numbers are those after the others'.
    """
    numbers = torch.arange(plan.experts, plan.experts + plan.shared_experts, device=x.device).expand(len(x), -1)
    opened = (x @ gate.T).sigmoid() if len(gate) else x.new_ones(len(x), 1)  # [n, 1]
    return torch.cat([chosen, numbers], -1), torch.cat([weights, opened.expand(numbers.shape)], -1)


class Routing(NamedTuple):
    """The routing of a mixture, as in `report.Report`: shares and first ``[L][D][E]``, accuracy ``[L][D]``, entropy
    ``[L]``."""

    shares: list[list[list[float]]]
    first: list[list[list[float]]]
    accuracy: list[list[float]]
    entropy: list[float]


class Tally:
    """Counts which experts the tokens of each domain go to, layer after layer.

    Attributes:
        counts: of all choices, and of first ones, float64 ``[L, D, 2, E]``.
        bits: the entropies of tokens' weights, summed up, float64 ``[L, D]``.
    """

    def __init__(self, plan: Plan, domains: int) -> None:
        """Count none yet.

        Args:
            plan: what the mixture is made by.
            domains: how many there are; an expert's by its number, and others after these.
        """
        self.counts = torch.zeros(plan.layers, domains, 2, plan.experts, dtype=torch.float64)
        self.bits = torch.zeros(plan.layers, domains, dtype=torch.float64)

    def add(self, layer: int, domain: int, chosen: Tensor, weights: Tensor) -> None:
        """Count tokens.

        Args:
            layer: by number.
            domain: that they are of, by number.
            chosen, weights: experts of each token, from the largest weight down, and their weights ``[n, k]``.
        """
        for kind, choices in enumerate((chosen.flatten(), chosen[:, 0])):
            self.counts[layer, domain, kind] += choices.bincount(minlength=self.counts.shape[-1]).cpu()
        self.bits[layer, domain] -= float((weights * weights.clamp(min=1e-9).log2()).double().sum())

    def routing(self) -> Routing:
        """Divide by how many there were of each domain, which must have some."""
        tokens = self.counts[:, :, 1].sum(-1)  # [L, D]
        shares, first = (self.counts / self.counts.sum(-1, keepdim=True)).unbind(2)  # [L, D, E] both
        accuracy = first.diagonal(dim1=1, dim2=2)  # [L, D]
        entropy = (self.bits / tokens).mean(1)
        return Routing(shares.tolist(), first.tolist(), accuracy.tolist(), entropy.tolist())
