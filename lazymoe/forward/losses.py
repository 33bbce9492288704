"""Losses and routing on texts, by the layer-streamed pass, so of mixtures too that don't fit into memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lazymoe.checkpoint.source import Source
from lazymoe.forward.head import predict
from lazymoe.forward.llama import Told
from lazymoe.forward.mixture import run
from lazymoe.forward.routing import Routing, Tally
from lazymoe.forward.skeleton import Weights
from lazymoe.forward.stream import Stream
from lazymoe.planning.plan import Plan


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
    tally = Tally(plan, len(batches))

    def seen(layer: int, domain: int, chosen: Tensor, weights: Tensor) -> None:
        real = batches[domain][1].flatten()
        tally.add(layer, domain, chosen[real], weights[real])

    stream = run(plan, mixture, [ids for ids, _ in batches], device, seen)
    losses = _head(stream, batches, device)
    return losses, tally.routing()


@torch.no_grad()
def mixture_told(plan: Plan, mixture: Source, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[Told]:
    """Ask a mixture what it says of the tokens of each batch.

    Args:
        plan, mixture, batches, device: as in `mixture_losses`.

    Raises:
        SourceError: as `dense_losses`.
    """
    stream = run(plan, mixture, [ids for ids, _ in batches], device, lambda *_: None)
    said = _said(stream, batches, device)
    return [Told(*(part.cpu().numpy() for part in of_each)) for of_each in said]


def _head(stream: Stream, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[float]:
    """Measure the mean loss per token of the next one, for each batch, from the states after all layers."""
    return [-float(said.double().mean()) for said, _ in _said(stream, batches, device)]


def _said(stream: Stream, batches: Sequence[tuple[Tensor, Tensor]], device: str) -> list[tuple[Tensor, Tensor]]:
    """Hold the tokens of each batch against what is said of them: as `predict` does, both ``[n]``."""
    read, targets = [], []
    for states, (ids, real) in zip(stream.finish(), batches, strict=True):
        known = real[:, 1:].to(device)
        read.append(states[:, :-1][known])  # [n, H]
        targets.append(ids[:, 1:].to(device)[known])  # [n]
    sizes = [len(target) for target in targets]
    said, likeliest = predict(stream, torch.cat(read), torch.cat(targets))
    return list(zip(said.split(sizes), likeliest.split(sizes), strict=True))
