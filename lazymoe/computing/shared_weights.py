"""Weights that all experts share: attention, norms, embeddings, head. From the base model, or merged from the experts.

`average`: the mean over the experts (BTX, https://arxiv.org/abs/2403.07816).

`regmean`: for each matrix the one whose outputs are nearest to every expert's own (RegMean,
https://arxiv.org/abs/2212.09849), in closed form:

    W = (sum_e W_e G_e) (sum_e G_e)^-1

where W_e is expert e's matrix and G_e an estimate of the second moments of its inputs in that expert's domain: half
from what the mixture itself reads of the expert's prompts, half from what the expert changed, D_e = W_e - W_0
(D_e^T D_e), for fine-tuning moves a matrix in the directions of its inputs (WUDI, https://arxiv.org/abs/2503.08099).
Norms are averaged.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lazymoe.architectures.records import Dense
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import InMemory, TensorInfo
from lazymoe.computing.places import Each, Passing
from lazymoe.errors import error
from lazymoe.forward.device import coarsely
from lazymoe.planning.memory import ROWS, head_rows
from lazymoe.planning.plan import Plan

Read = Iterable[Tensor] | None  # rows that maps read, some [n, in] at a time; None if they aren't known
STRIP = 512  # rows of a symmetric matrix that are computed at a time
RIDGE = 0.1  # of the identity in each G_e, whose other parts have mean eigenvalue 1


class Average:
    """The experts' mean, as a source, in the output's dtype.

    Attributes:
        base, experts: the base model, and the experts in the order in which they are added up.
        numbers: of these experts' sources in the plan.
        made: every tensor that was asked for, by name; whoever has used them empties it.
        noted: rows of matrices, by name, after their numbers, sorted ``[n]``: no others are asked for.
    """

    def __init__(self, plan: Plan, order: Sequence[int]) -> None:
        self.numbers = [expert + 1 for expert in order]
        self.base, self.experts = plan.sources[0], [plan.sources[number] for number in self.numbers]
        self.dtype = getattr(torch, plan.config["dtype"])
        self.made: dict[str, Tensor] = {}
        self.noted: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def config(self) -> dict[str, Any]:
        return self.base.config

    @property
    def dense(self) -> Dense | None:
        return self.base.dense

    @property
    def folder(self) -> Path:
        return self.base.folder

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.base.tensors

    def load(self, name: str) -> Tensor:
        """Average a tensor.

        Args:
            name: of the tensor.
        """
        if name not in self.made:
            self.made[name] = finite(_mean(self.base, self.experts, name).to(self.dtype), name)
        return self.made[name]

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        """Average rows of a matrix ``[N, H]``: ``[n, H]``. Tokens that an expert lacks are as in the base model.

        Args:
            name: of the matrix.
            indices: of the rows, n of them.
        """
        wanted = list(indices)
        if name in self.noted:
            numbers, noted = self.noted[name]
            return noted[torch.searchsorted(numbers, torch.tensor(wanted))]
        rows = self.base.rows(name, wanted).float()
        mean = rows.clone()
        for expert in self.experts:
            there = [i for i, index in enumerate(wanted) if index < expert.tensor(name).shape[0]]
            theirs = expert.rows(name, [wanted[i] for i in there]).float() if there else rows[:0]
            mean[there] += (theirs - rows[there]) / len(self.experts)
        return finite(mean.to(self.dtype), name)


def merge_maps(
    base: Source, experts: Iterable[int], names: Sequence[str], read: Iterable[Read], device: str, each: Each
) -> dict[str, Tensor]:
    """Merge maps that read the same input, by one factorisation.

    Args:
        base: the base model.
        experts: numbers of the experts' sources, in the order in which they are added up.
        names: of the matrices, each ``[out, in]``, or ``[in, out]`` where they lie so.
        read: of each expert what its prompts give these maps to read, or None if that isn't known.
        device: where to compute.
        each: has the work done that is an expert's.

    Returns:
        Each merged matrix by name as it lies, float32, on the CPU.

    Raises:
        SourceError: if an expert has NaN or infinity in one of them.
    """
    own = {name: base.load(name) for name in names}
    asked = zip(experts, ((own, rows, device) for rows in read), strict=True)
    # by what is different from the first expert's: W = W_1 + (sum_e (W_e - W_1) G_e) (sum_e G_e)^-1
    [answer] = each(_changes, [next(asked)])
    first = next(answer)
    others = each(_changes, ((number, (*given, first)) for number, given in asked))
    total, weighted = next(answer), torch.zeros_like(first)
    for answer in others:
        weighted += next(answer)
        total += next(answer)
    merged = first.add_(torch.cholesky_solve(weighted.T, torch.linalg.cholesky(total)).T).cpu()
    parts = merged.split([len(_as_map(base, name, tensor)) for name, tensor in own.items()])
    return {name: own[name].float() + _as_map(base, name, part) for name, part in zip(own, parts, strict=True)}


def _changes(
    expert: Passing, own: Mapping[str, Tensor], read: Read, device: str, first: Tensor | None = None
) -> Iterator[Tensor]:
    """Work out what an expert has to say of maps that read the same.

    Args:
        expert: the model.
        own: the base model's matrices, by name.
        read, device: as in `merge_maps`.
        first: D_1, of the first expert; None if it is this one.

    Yields:
        Of the first D_e, what it changed in all maps, one below the other ``[out, in]``; of others
        (D_e - D_1) G_e. Then G_e, the moments of what they read ``[in, in]``. Both float32.
    """
    seen = _summed(read)
    shapes = [_as_map(expert, name, tensor).shape for name, tensor in own.items()]
    sizes = [out for out, _ in shapes]
    changed = torch.empty(sum(sizes), shapes[0][1], device=device)
    for (name, tensor), rows in zip(own.items(), changed.split(sizes), strict=True):
        theirs = expert.load(name) if expert.has(name) else torch.empty(0)
        rows.copy_(_as_map(expert, name, finite(_delta(tensor.float(), theirs), name)))
    if first is None:
        yield changed
    moments = _moments(squares(changed), seen)
    if first is not None:
        yield changed.sub_(first) @ moments
    yield moments


def in_blocks(source: Source | Passing, name: str) -> Iterator[Tensor]:
    """Read a tensor some rows at a time, if there is one.

    Args:
        source: the model.
        name: of the tensor.
    """
    for start in range(0, source.tensor(name).shape[0] if source.has(name) else 0, ROWS):
        yield read_rows(source, name, start, start + ROWS)


def means(average: Average, name: str, wanted: Tensor | None = None) -> Iterator[Tensor]:
    """Average a tensor outside the layers, some rows at a time: a vocabulary can be larger than any layer.

    Args:
        average: the experts.
        name: of the tensor.
        wanted: numbers of rows that will be asked for, sorted ``[n]``: they are noted, so that none is read again.

    Raises:
        SourceError: if a weight is NaN or infinite.
    """
    noted, length = [], average.base.tensors[name].shape[0]
    wanted = None if wanted is None or (wanted >= length).any() else wanted  # who asks for one that isn't there is told
    for start in range(0, length, ROWS):
        rows = finite(_mean(average.base, average.experts, name, start, start + ROWS).to(average.dtype), name)
        if wanted is not None:
            noted.append(rows[wanted[(wanted >= start) & (wanted < start + len(rows))] - start])
        yield rows
    if wanted is not None:
        average.noted[name] = wanted, torch.cat(noted)


def merge_head(average: Average, name: str, read: Iterable[Read], device: str, each: Each) -> Iterator[Tensor]:
    """Merge the head, some rows at a time: as `merge_maps`, but by one factor P_e for each expert, as rows are many.

    W = W_1 + sum_e (W_e - W_1) P_e, where P_e = G_e (sum_e G_e)^-1

    The factors come first. Of D_e they know the first rows, which are the commonest tokens' in most vocabularies: these
    wait in memory meanwhile, so that no row is read twice.

    Args:
        average: the experts.
        name: of the head.
        read: of each expert what its prompts give it to read, or None if that isn't known.
        device: where to compute.
        each: reads the models.

    Raises:
        SourceError: if a weight is NaN or infinite.
    """
    length, width = average.base.tensors[name].shape
    models = _blocks(average, name, each)
    blocks = ([next(rows, torch.empty(0)) for rows in models] for _ in range(0, length, ROWS))  # the base's comes first
    known = list(itertools.islice(blocks, math.ceil(head_rows(length, width) / ROWS)))
    factors: list[Tensor] = []  # [H, H] each: first the moments G_e
    for e, rows in enumerate(read):
        gram = torch.zeros(width, width, device=device)
        for own, *theirs in known:
            gram += squares(finite(_delta(own.float(), theirs[e]), name).to(device))
        factors.append(_moments(gram, _summed(rows)))
    cholesky = torch.linalg.cholesky(sum(factors[1:], start=factors[0]))
    for e in range(1, len(factors)):  # the first expert's isn't needed
        factors[e] = torch.cholesky_solve(factors[e], cholesky).T
    for own, first, *others in itertools.chain(known, blocks):
        own = own.float()
        one = _delta(own, first).to(device)
        merged = one.clone()
        for rows, factor in zip(others, factors[1:], strict=True):
            with coarsely():  # unlike the moments, P_e is nothing that is still to be inverted
                merged += (_delta(own, rows).to(device) - one) @ factor
        yield finite((own + merged.cpu()).to(average.dtype), name)


def _blocks(average: Average, name: str, each: Each) -> list[Iterator[Tensor]]:
    """Read a tensor of the base model and of the experts some rows at a time: where the models are, if not in
    memory."""
    if isinstance(average.base.tensor(name).reader, InMemory):
        return [in_blocks(source, name) for source in (average.base, *average.experts)]
    return list(each(in_blocks, ((number, (name,)) for number in (0, *average.numbers))))


def squares(x: Tensor) -> Tensor:
    """Sum up the outer products of rows, x^T x ``[d, d]`` of ``[n, d]``, as exactly as an estimate of moments needs."""
    width = x.shape[1]
    sums = x.new_empty(width, width)
    with coarsely():
        for start in range(0, width, STRIP):  # what lies above the diagonal is what lies below it
            stop = start + STRIP
            sums[start:stop, :stop] = x[:, start:stop].T @ x[:, :stop]
            sums[:start, start:stop] = sums[start:stop, :start].T
    return sums


def _summed(rows: Read) -> Tensor | None:
    """Sum up the `squares` of rows, if they are known."""
    return None if rows is None else functools.reduce(Tensor.add_, map(squares, rows))


def _moments(gram: Tensor, read: Tensor | None) -> Tensor:
    """Estimate an input's second moments ``[d, d]``: of mean eigenvalue 1 and a bit, never singular.

    Args:
        gram: D^T D, of what fine-tuning changed ``[d, d]``.
        read: x^T x of inputs ``[d, d]``, if there are any.
    """
    parts = [gram] if read is None else [gram, read]
    total = RIDGE * torch.eye(len(gram), device=gram.device)
    for part in parts:
        if trace := float(part.trace()):
            total += part * (len(gram) / trace / len(parts))
    return total


def _as_map(source: Source | Passing, name: str, weight: Tensor) -> Tensor:
    """Turn a map's weight as it lies to ``[out, in]``, or back."""
    return weight.T if source.dense and source.dense.is_turned(name) else weight


def _mean(base: Source, experts: Sequence[Source], name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Average rows of a tensor over the experts, float32."""
    own = read_rows(base, name, start, stop).float()
    mean = own.clone()
    for expert in experts:
        mean += _delta(own, _theirs(expert, name, start, start + len(own))) / len(experts)
    return mean


def _delta(own: Tensor, theirs: Tensor) -> Tensor:
    """Work out what an expert changed in rows of a tensor, float32.

    Tokens that only one of the two has count as unchanged.

    Args:
        own: the base model's rows, float32.
        theirs: the expert's, as they lie.
    """
    known = own[: len(theirs)]
    changed = theirs[: len(own)].float() - known if len(theirs) else known
    return changed if len(changed) == len(own) else torch.cat([changed, torch.zeros_like(own[len(changed) :])])


def _theirs(expert: Source, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Read an expert's rows: none if it has no such tensor."""
    return read_rows(expert, name, start, stop) if expert.has(name) else torch.empty(0)


def read_rows(source: Source | Passing, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Read rows of a tensor, as many as there are. A vector's elements are its rows.

    Args:
        source: the model.
        name: of the tensor.
        start, stop: the first row, and the one after the last; to the end if None.
    """
    tensor = source.tensor(name)
    stop = min(stop or tensor.shape[0], tensor.shape[0])
    width = tensor.elements // tensor.shape[0]
    return tensor.read(start * width, max(start, stop) * width).reshape(-1, *tensor.shape[1:])


def as_bytes(tensor: Tensor) -> memoryview:
    """Give the bytes of a tensor, of any dtype and shape.

    Args:
        tensor: it, wherever it is.
    """
    return memoryview(tensor.cpu().contiguous().view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]


def finite(tensor: Tensor, name: str) -> Tensor:
    """Give a merged tensor back, if it has no NaN or infinity.

    Args:
        tensor: it.
        name: what messages call it.

    Raises:
        SourceError: if it has.
    """
    if not torch.isfinite(tensor).all():
        what = f"'{name}' came out NaN or infinite when it was merged"
        raise error("source.broken", "shared_weights", what, "Use 'shared_weights: base', or look for a broken expert.")
    return tensor
