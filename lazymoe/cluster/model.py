"""A model on a machine of a cluster: its bytes are brought there, and its part of the work is done there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from torch import Tensor, nn

from lazymoe.checkpoint.opening import fetch, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.computing.places import Passing, Work
from lazymoe.errors import LazyMoEError, error
from lazymoe.hub.ahead import Ahead
from lazymoe.hub.client import use_token
from lazymoe.planning.remote import two_layers
from lazymoe.recipe.reference import Reference
from lazymoe.version import versions


class Wanted(NamedTuple):
    """A model that is wanted.

    Attributes:
        reference: what names it, at its commit.
        folder: that relative names in it begin at.
        where: how messages name the place that it was asked for.
        fingerprint: of it, so that no other is taken for it.
        allow_pickle: whether ``.bin`` weights are accepted.
        written: names of the tensors that are handed on when they are read.
        kept: names of the tensors that are read twice, and kept in between.
    """

    reference: Reference
    folder: Path
    where: str
    fingerprint: str
    allow_pickle: bool
    written: frozenset[str]
    kept: frozenset[str]


class Told(NamedTuple):
    """What an actor says.

    Attributes:
        brought: bytes that it has read on the Hub so far.
        value: what came of its work; None if what it says next is a tensor that was read for it.
        name: of that tensor; empty for what came of the work.
    """

    brought: int
    value: Any
    name: str = ""


class Model:
    """A model, as an actor: one thing after the other, in the order in which they are asked for."""

    def __init__(self) -> None:
        by_bytes()
        self._brought = 0

    def begin(self, wanted: Wanted, threads: int, token: str | None) -> dict[str, str]:
        """Open the model; tell the versions that it is read with.

        Args:
            wanted: which.
            threads: that compute, as many as elsewhere: sums depend on it.
            token: for the Hub; kept in memory alone.

        Raises:
            LazyMoEError: if it isn't here, or can't be read.
        """
        if token:
            use_token(token)
        torch.set_num_threads(threads)
        self._source = source = _open(wanted)
        self._written = wanted.written
        if source.origin and source.origin.ranges:
            total = sum(tensor.nbytes for tensor in source.tensors.values())
            Ahead([source.origin.ranges], None, _room(source), total, self._tell, wanted.kept).__enter__()
        return versions()

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._brought = done

    def read(self, file: str, offset: int, length: int) -> Told:
        """Read bytes of a file on the Hub; see `Ranges.read`."""
        assert self._source.origin and self._source.origin.ranges
        data = self._source.origin.ranges.read(file, offset, length)
        return Told(self._brought, np.frombuffer(data, np.uint8))

    def work(self, work: Work, precision: str, number: int, *given: Any) -> Iterator[Told | Tensor]:
        """Do a piece of work, with what it reads handed on before what comes of it; see `Places.each`.

        A tensor that was read stays here until somebody wants it.

        Args:
            work: what to do.
            precision: of products of float32, as torch names it.
            number: of the source that the model is meant as.
            given: what the work takes beside the model.
        """
        read: list[tuple[str, Tensor]] = []

        def take(_: int, name: str, tensor: Tensor) -> None:
            if name in self._written:
                read.append((name, tensor))

        torch.set_float32_matmul_precision(precision)
        for made in work(Passing(self._source, number, take), *given):
            while read:
                name, tensor = read.pop(0)
                yield Told(self._brought, None, name)
                yield tensor
            yield Told(self._brought, made)


def _open(wanted: Wanted) -> Source:
    """Open a model on this machine.

    Raises:
        SourceError: if it isn't here, or not the same.
    """
    reference, here = wanted.reference, ray.util.get_node_ip_address()
    with suppress(OSError):  # if it isn't here, a name from there isn't found either
        os.chdir(wanted.folder)
    remedy = "Put it on the Hub, or on a disk that every machine of the cluster has at this place."
    try:
        source = open_source(reference, wanted.where, wanted.allow_pickle)
        fetch([(source, wanted.where)], remote=True)  # what can't be read where it is
    except LazyMoEError as e:
        if e.problems[0].code != "source.not-found":
            raise
        what = f"{here} of the cluster has no folder '{reference.model}'"
        raise error("source.not-found", wanted.where, what, remedy) from None
    if source.fingerprint != wanted.fingerprint:
        what = f"on {here} of the cluster '{reference.model}' is another model"
        raise error("source.changed", wanted.where, what, remedy)
    return source


def _room(source: Source) -> int:
    """Count the bytes to hold of a model."""
    layers = Counter[int | None]()
    for name, tensor in source.tensors.items():
        layers[source.dense.layer_of(name) if source.dense else None] += tensor.nbytes
    return two_layers(layers)


def by_bytes() -> None:
    """Let tensors travel as their bytes from this process on, and weights of a module not at all: where it is sent it
    is given others."""
    ray.util.register_serializer(Tensor, serializer=_packed, deserializer=_unpacked)
    ray.util.register_serializer(nn.Parameter, serializer=_shaped, deserializer=_allocated)


def _packed(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _unpacked(packed: tuple[Any, ...]) -> Tensor:
    dtype, shape, data = packed
    tensor = torch.empty(shape, dtype=dtype)  # where torch aligns it: products depend on that
    tensor.view(-1).view(torch.uint8).numpy()[:] = data
    return tensor


def _shaped(parameter: nn.Parameter) -> tuple[Any, ...]:
    return parameter.dtype, tuple(parameter.shape)


def _allocated(shaped: tuple[Any, ...]) -> nn.Parameter:
    dtype, shape = shaped
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
