"""Losses and routing on texts, by the layer-streamed pass, so of mixtures too that don't fit into memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.forward.mixture import Routing, Tally, run
from lazymoe.forward.stream import Stream, Weights
from lazymoe.planning.plan import Plan

AT_ONCE = 256  # tokens that go through the head at a time


class Average:
    """The plain average of several sources' weights, as a source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources, self.tensors = sources, {name: t for s in sources for name, t in s.tensors.items()}
        self.config, self.folder, self.dense = sources[0].config, sources[0].folder, sources[0].dense

    def load(self, name: str) -> Tensor:
        """Average a whole tensor, float32.

        Args:
            name: of the tensor.
        """
        return self._mean(s.load(name) for s in self.sources)

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        """Average rows of a matrix ``[N, H]``: ``[n, H]``, float32.

        Args:
            name: of the matrix.
            indices: of the rows, n of them.
        """
        listed = list(indices)
        return self._mean(s.rows(name, listed) for s in self.sources)

    def _mean(self, tensors: Iterable[Tensor]) -> Tensor:
        """Average tensors in float32, one in memory at a time."""
        return functools.reduce(torch.add, (tensor.float() for tensor in tensors)) / len(self.sources)


def dense_losses(plan: Plan, source: Weights, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[float]:
    """Measure the mean loss per token of a dense model on each batch.

    Args:
        plan: of the mixture that the model is part of.
        source: the model; its weights must be on the disk.
        batches: token ids ``[B, T]``, int64, and which places are real, bool ``[B, T]``.
        device: where to compute.

    Returns:
        The losses, nats, one for each batch.

    Raises:
        SourceError: if a state becomes NaN or infinite, or there is a token that the model doesn't have.
    """
    stream = Stream(source, [ids for ids, _ in batches], device)
    for _ in range(plan.layers):
        stream.step()
    return _head(stream, batches, device)


def mixture_losses(
    plan: Plan, mixture: Source, batches: Sequence[tuple[Tensor, Tensor]], device: str
) -> tuple[list[float], Routing]:
    """Measure the losses of a mixture on each batch, and its routing.

    Args:
        plan: what it was made by.
        mixture: it, opened.
        batches: as in `dense_losses`, one for each domain.
        device: where to compute.

    Returns:
        The losses, nats, one for each batch; and the routing.

    Raises:
        SourceError: as `dense_losses`.
    """
    tally = Tally(plan)

    def seen(layer: int, domain: int, chosen: Tensor, weights: Tensor) -> None:
        real = batches[domain][1].flatten()
        tally.add(layer, domain, chosen[real], weights[real])

    stream = run(plan, mixture, [ids for ids, _ in batches], device, seen)
    losses = _head(stream, batches, device)
    return losses, tally.routing()


@torch.no_grad()
def _head(stream: Stream, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[float]:
    """Measure the mean loss per token of the next one, for each batch, from the states after all layers."""
    losses = []
    for states, (ids, real) in zip(stream.finish(), batches, strict=True):
        known = real[:, 1:].to(device)
        x, target = states[:, :-1][known], ids[:, 1:].to(device)[known]  # [n, H], [n]
        parts = zip(x.split(AT_ONCE), target.split(AT_ONCE), strict=True)
        found = (torch.nn.functional.cross_entropy(stream.logits(a), t, reduction="sum").item() for a, t in parts)
        losses.append(sum(found) / len(target))
    return losses
