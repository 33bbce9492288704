"""Losses and routing on texts, by the layer-streamed pass, so of mixtures too that don't fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.forward.mixture import InMixture, run
from lazymoe.forward.stream import Stream, Weights
from lazymoe.planning.plan import Plan

HEAD = 256  # tokens that go through the head at a time


class Average:
    """The plain average of several sources' weights, as a source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources, self.tensors = sources, sources[0].tensors
        self.config, self.folder = sources[0].config, sources[0].folder

    def load(self, name: str) -> Tensor:
        return torch.stack([s.load(name).float() for s in self.sources]).mean(0)

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        return torch.stack([s.rows(name, indices).float() for s in self.sources]).mean(0)


def dense_losses(plan: Plan, source: Weights, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[float]:
    """Mean loss per token of a dense model on each batch."""
    stream = Stream(source, [ids for ids, _ in batches], device)
    for _ in range(plan.layers):
        stream.step()
    return _head(plan, stream, source, batches, device)


def mixture_losses(
    plan: Plan, mixture: Source, batches: Sequence[tuple[Tensor, Tensor]], device: str
) -> tuple[list[float], list[list[list[float]]], list[list[float]], list[float]]:
    """Losses of a mixture on each batch, and its routing: shares, accuracy and entropy as in `report.Report`."""
    shares: list[list[list[float]]] = [[] for _ in range(plan.layers)]
    accuracy: list[list[float]] = [[] for _ in range(plan.layers)]
    entropy: list[list[float]] = [[] for _ in range(plan.layers)]

    def seen(layer: int, domain: int, chosen: Tensor, weights: Tensor) -> None:
        real = batches[domain][1].flatten()
        counts = chosen[real].flatten().bincount(minlength=plan.experts)
        shares[layer].append((counts / counts.sum()).tolist())
        accuracy[layer].append(float((chosen[real, 0] == domain).float().mean()))
        entropy[layer].append(float(-(weights[real] * weights[real].clamp(min=1e-9).log2()).sum(1).mean()))

    stream = run(plan, mixture, [ids for ids, _ in batches], device, seen)
    losses = _head(plan, stream, InMixture(plan, mixture, 0), batches, device)
    return losses, shares, accuracy, [sum(row) / len(row) for row in entropy]


@torch.no_grad()
def _head(
    plan: Plan, stream: Stream, source: Weights, batches: Sequence[tuple[Tensor, Tensor]], device: str
) -> list[float]:
    """Mean loss per token of the next one, for each batch, from the states after all layers."""
    name = "lm_head.weight" if "lm_head.weight" in source.tensors else "model.embed_tokens.weight"
    head = source.load(name).float().to(device)  # [V, H]
    bias = source.load("lm_head.bias").float().to(device) if "lm_head.bias" in source.tensors else 0.0  # [V]
    config = plan.dense.fill(source.config)
    scale = config.get("logit_scale", 1.0) / config.get("logits_scaling", 1.0)  # Cohere's and Granite's
    cap = config.get("final_logit_softcapping")  # Gemma's
    losses = []
    for states, (ids, real) in zip(stream.finish(), batches, strict=True):
        known = real[:, 1:].to(device)
        x, target = states[:, :-1][known], ids[:, 1:].to(device)[known]  # [n, H], [n]
        parts = zip(x.split(HEAD), target.split(HEAD), strict=True)
        logits = ((scale * (a @ head.T + bias), t) for a, t in parts)
        logits = ((cap * (found / cap).tanh() if cap else found, t) for found, t in logits)
        total = sum(torch.nn.functional.cross_entropy(found, t, reduction="sum").item() for found, t in logits)
        losses.append(total / len(target))
    return losses
