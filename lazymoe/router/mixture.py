"""A layer's feed-forward network as a mixture: the experts' own weights, one expert in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lazymoe.families.types import LAYER
from lazymoe.plan import Plan
from lazymoe.router.stream import Stream
from lazymoe.source import Source


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


def run(
    plan: Plan,
    mixture: Source,
    batches: Sequence[Tensor],
    device: str,
    seen: Callable[[int, int, Tensor, Tensor], None],
) -> Stream:
    """Run all layers of a finished mixture, a layer and in it an expert at a time.

    Args:
        plan: what it was made by.
        mixture: it, opened.
        batches: token ids ``[B, T]`` each.
        device: where to compute.
        seen: told of each layer and batch, by number, the experts of its tokens and their weights ``[B * T, k]``.

    Returns:
        The pass, ready to `finish`.
    """
    base, experts = plan.sources[0], range(plan.experts)
    own = {name: replace(t, file=str(mixture.folder / t.file)) for name, t in mixture.tensors.items()}
    stream = Stream(replace(base, tensors=own), batches, device)
    place = [0]  # the batch that comes next: each layer runs them in order

    def load(expert: int, module: nn.Module) -> None:
        for name, role in plan.family.experts.items():
            parameter = module.get_parameter(plan.dense.ffn[role][0].partition(".")[2])
            parameter.copy_(mixture.load(LAYER.format(layer=stream.next) + name.format(expert=expert)))

    def feed_forward(module: nn.Module, x: Tensor) -> Tensor:
        gates = mixture.load(LAYER.format(layer=stream.next) + plan.family.router).float().to(device)
        chosen, weights = route(gates, x.flatten(0, 1), plan.top_k)
        seen(stream.next, place[0], chosen, weights)
        place[0] = (place[0] + 1) % len(batches)
        return mix(load, module, x.flatten(0, 1), chosen, weights, experts).view_as(x)

    for _ in range(plan.layers):
        stream.step(feed_forward=(module_name(plan), feed_forward))
    return stream
