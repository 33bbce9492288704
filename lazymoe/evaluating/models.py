"""Who is asked: the base model, each expert, the plain average of the experts' weights, the mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lazymoe.checkpoint.opening import open_folder
from lazymoe.checkpoint.source import Source
from lazymoe.computing.shared_weights import Average
from lazymoe.errors import LazyMoEError, error, nearest
from lazymoe.evaluating.suites import AVERAGE, BASE, EXPERTS, KINDS, MIXTURE
from lazymoe.files import stamp
from lazymoe.forward.likelihoods import Means, Run, layers_of
from lazymoe.forward.loading import load, load_dense
from lazymoe.forward.mixture import InMixture, run
from lazymoe.forward.skeleton import Weights, settled_config
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import load_tokenizer
from lazymoe.output.folder import CONFIG, Finished
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.planning.remote import whole

PASS = "3"  # counted up when a pass gives other figures than before: what was answered then isn't taken any more
# vectors of a token: those there are at a time, and those that are read and written in a layer if they are on the disk
DENSE = 2, 2  # its states, before and after
HALTED = 6, 14  # states, what attention reads and gives, what the experts read and what comes of it ...
EACH = 3  # ... where each expert reads all of one batch after the other, and adds to what has come of it
FAR = 4  # how much longer a byte takes from the Hub than from the disk, about


@dataclass(frozen=True)
class Model:
    """One who is asked.

    Attributes:
        name: what tables call it.
        fingerprint: what tells it from any other, and from itself after a change.
        exact: whether products are to be as exact as they can; else as those of a model in 16 bit, which a mixture in
            16 bit is.
        weights: its own, of a mixture those of its backbone.
        tokenizer: its own, transformers'.
        run: sends tokens through its layers.
        load: loads all of it, in 4 bit or in its own dtype.
        vectors: of a token, as `Means` has them: how many there are, and how many are moved.
        nbytes: of the weights that are read.
        sources: the models that it is read from; none for the mixture, which is here.
    """

    name: str
    fingerprint: str
    exact: bool
    weights: Weights
    tokenizer: Any = field(repr=False)
    run: Run = field(repr=False)
    load: Callable[[Literal[4] | None], Any] = field(repr=False)
    vectors: tuple[int, int]
    nbytes: int
    sources: tuple[Source, ...] = field(default=(), repr=False)

    @property
    def config(self) -> Any:
        """Its config, as transformers has it; of a mixture that of the dense model that its backbone is of."""
        return settled_config(self.weights)

    def means(self, room: int, place: Path) -> Means:
        """Say what there is to send tokens through it with.

        Args:
            room: bytes of memory.
            place: a folder for states that have no room there.
        """
        return Means(room, *self.vectors, self.nbytes + (FAR - 1) * whole(self.sources).nbytes, place)


class Found(NamedTuple):
    """One who can be asked: the models that it is read from, as `Model.sources` has them, and what opens it."""

    sources: tuple[Source, ...]
    open: Callable[[], Model]


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """Take the kinds of models that are named, in the order of tables.

    Args:
        names: some of `KINDS`.

    Raises:
        LazyMoEError: if there is no such kind, or none is named.
    """
    if unknown := [name for name in names if name not in KINDS]:
        raise error("input.models", "models", f"there is no '{unknown[0]}'", nearest(unknown[0], KINDS))
    if not names:
        raise error("input.models", "models", "none is named", f"Known are: {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in names)


def read_for(prepared: Prepared, kind: str) -> list[tuple[Source, ...]]:
    """List the models of a recipe that are read for each of a kind, each once.

    Args:
        prepared: the recipe.
        kind: one of `KINDS`.
    """
    base, *experts = prepared.sources[: 1 + prepared.sound_plan.experts]
    every = tuple({source.reference: source for source in (base, *experts)}.values())
    found: dict[str, list[tuple[Source, ...]]] = {BASE: [(base,)], EXPERTS: [(e,) for e in experts], AVERAGE: [every]}
    return found.get(kind, [])


def find_models(done: Finished, prepared: Prepared, kinds: Sequence[str], device: str) -> list[Found]:
    """List those who are asked.

    Args:
        done: the mixture.
        prepared: its recipe.
        kinds: which, as `choose` gives them.
        device: where they run.
    """
    plan = prepared.sound_plan
    own = load_tokenizer(open_folder(done.folder))
    names = {BASE: [BASE], EXPERTS: [f"expert {name}" if name in KINDS else name for name in prepared.recipe.names]}
    dtype = getattr(torch, plan.config["dtype"])

    def average(read: tuple[Source, ...]) -> Model:
        marks = [AVERAGE, *map(_mark, (plan.sources[0], *plan.expert_sources))]
        return _dense(AVERAGE, marks, Average(plan, range(plan.experts)), own, dtype, device, read)

    def single(name: str, source: Source) -> Model:
        return _dense(name, _mark(source), source, _tokenizer(source, own), dtype, device, (source,))

    found: list[Found] = []
    for kind in kinds:
        read = read_for(prepared, kind)
        if kind == MIXTURE:
            found.append(Found((), partial(_mixture, done, plan, own, dtype, device)))
        elif kind == AVERAGE:
            found.append(Found(read[0], partial(average, read[0])))
        else:
            named = zip(names[kind], read, strict=True)
            found += [Found((source,), partial(single, name, source)) for name, (source,) in named]
    return found


def _dense(
    name: str,
    mark: object,
    weights: Weights,
    tokenizer: Any,
    dtype: torch.dtype,
    device: str,
    sources: tuple[Source, ...],
) -> Model:
    """Describe a dense model."""

    def let_go() -> None:
        if isinstance(weights, Average):
            weights.made.clear()

    def step_through(batches: Sequence[Tensor], passed: Callable[[int], None], place: Path | None) -> Stream:
        stream = Stream(weights, batches, device, place)
        for layer in range(layers_of(weights)):
            stream.step()
            let_go()
            passed(layer + 1)
        return stream

    def loaded(bits: Literal[4] | None) -> Any:
        model = load_dense(weights, dtype, bits, device)
        let_go()
        return model

    mark, exact, nbytes = _digest(mark, dtype), dtype == torch.float32, sum(map(_nbytes, sources))
    return Model(name, mark, exact, weights, tokenizer, step_through, loaded, DENSE, nbytes, sources)


def _mixture(done: Finished, plan: Plan, tokenizer: Any, dtype: torch.dtype, device: str) -> Model:
    """Describe the mixture."""
    mixture = open_folder(done.folder)

    def step_through(batches: Sequence[Tensor], passed: Callable[[int], None], place: Path | None) -> Stream:
        def seen(layer: int, batch: int, chosen: Tensor, weights: Tensor) -> None:
            if batch == 0:
                passed(layer)  # this one has only begun

        return run(plan, mixture, batches, device, seen, place=place)

    def loaded(bits: Literal[4] | None) -> Any:
        return load(done.folder, bits, device=device)[0]

    marks = [(path.name, stamp(path)) for path in (*done.weights, done.folder / CONFIG)]
    mark, exact = _digest(done.record.fingerprint, marks), dtype == torch.float32
    body, vectors = InMixture(plan, mixture, 0), (HALTED[0], HALTED[1] + EACH * (plan.experts + plan.shared_experts))
    return Model(MIXTURE, mark, exact, body, tokenizer, step_through, loaded, vectors, _nbytes(mixture))


def _tokenizer(source: Source, own: Any) -> Any:
    """Load a model's own tokenizer, or take the mixture's."""
    try:
        return load_tokenizer(source)
    except LazyMoEError:
        return own


def _mark(source: Source) -> tuple[Any, ...]:
    """Give what tells a model from any other: its layout and its files."""
    return source.fingerprint, sorted(source.stamps.items())


def _nbytes(source: Source) -> int:
    return sum(tensor.nbytes for tensor in source.tensors.values())


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr((PASS, *parts)).encode()).hexdigest()[:32]
