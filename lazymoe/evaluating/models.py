"""Who is asked: the base model, each expert, the plain average of the experts' weights, the mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lazymoe.checkpoint.opening import fetch, open_folder
from lazymoe.checkpoint.source import Source
from lazymoe.computing.shared_weights import Average
from lazymoe.errors import LazyMoEError, error, nearest
from lazymoe.evaluating.suites import AVERAGE, BASE, EXPERTS, KINDS, MIXTURE
from lazymoe.files import stamp
from lazymoe.forward.likelihoods import layers_of
from lazymoe.forward.loading import load, load_dense
from lazymoe.forward.mixture import InMixture, run
from lazymoe.forward.stream import Stream, Weights, settled_config
from lazymoe.forward.tokens import load_tokenizer
from lazymoe.output.folder import CONFIG, Finished
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress

PASS = "1"  # counted up when a pass gives other figures than before: what was answered then isn't taken any more


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
        run: sends tokens through its layers, see `likelihoods.Run`.
        load: loads all of it, in 4 bit or in its own dtype.
    """

    name: str
    fingerprint: str
    exact: bool
    weights: Weights
    tokenizer: Any = field(repr=False)
    run: Callable[[Sequence[Tensor], Callable[[int], None]], Stream] = field(repr=False)
    load: Callable[[Literal[4] | None], Any] = field(repr=False)

    @property
    def config(self) -> Any:
        """Its config, as transformers has it; of a mixture that of the dense model that its backbone is of."""
        return settled_config(self.weights)


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


def open_models(
    done: Finished, prepared: Prepared, kinds: Sequence[str], device: str, progress: Progress
) -> Iterator[Model]:
    """Open those who are asked, one after the other; what isn't on the disk is downloaded first.

    Args:
        done: the mixture.
        prepared: its recipe.
        kinds: which, as `choose` gives them.
        device: where they run.
        progress: told of the bytes that are there, stage ``download``.

    Raises:
        LazyMoEError: if one can't be downloaded, or has no tokenizer and the mixture neither.
    """
    plan = prepared.sound_plan
    own = load_tokenizer(open_folder(done.folder))
    numbers = {BASE: [0], EXPERTS: list(range(1, 1 + plan.experts)), AVERAGE: list(range(1 + plan.experts))}
    needed = sorted({number for kind in kinds for number in numbers.get(kind, [])})
    fetch([(prepared.sources[number], prepared.recipe.models[number].where) for number in needed], progress)
    names = [BASE, *(f"expert {name}" if name in KINDS else name for name in prepared.recipe.names)]
    dtype = getattr(torch, plan.config["dtype"])
    for kind in kinds:
        for number in numbers[kind] if kind in (BASE, EXPERTS) else []:
            source = prepared.sources[number]
            yield _dense(names[number], _mark(source), source, _tokenizer(source, own), dtype, device)
        if kind == AVERAGE:
            marks = [AVERAGE, *map(_mark, (plan.sources[0], *plan.expert_sources))]
            yield _dense(AVERAGE, marks, Average(plan, range(plan.experts)), own, dtype, device)
        if kind == MIXTURE:
            yield _mixture(done, plan, own, dtype, device)


def _dense(name: str, mark: object, weights: Weights, tokenizer: Any, dtype: torch.dtype, device: str) -> Model:
    """Describe a dense model."""

    def let_go() -> None:
        if isinstance(weights, Average):
            weights.made.clear()

    def step_through(batches: Sequence[Tensor], passed: Callable[[int], None]) -> Stream:
        stream = Stream(weights, batches, device)
        for layer in range(layers_of(weights)):
            stream.step()
            let_go()
            passed(layer + 1)
        return stream

    def loaded(bits: Literal[4] | None) -> Any:
        model = load_dense(weights, dtype, bits, device)
        let_go()
        return model

    exact = dtype == torch.float32
    return Model(name, _digest(mark, dtype), exact, weights, tokenizer, step_through, loaded)


def _mixture(done: Finished, plan: Plan, tokenizer: Any, dtype: torch.dtype, device: str) -> Model:
    """Describe the mixture."""
    mixture = open_folder(done.folder)

    def step_through(batches: Sequence[Tensor], passed: Callable[[int], None]) -> Stream:
        def seen(layer: int, batch: int, chosen: Tensor, weights: Tensor) -> None:
            if batch == 0:
                passed(layer)  # this one has only begun

        return run(plan, mixture, batches, device, seen)

    def loaded(bits: Literal[4] | None) -> Any:
        return load(done.folder, bits, device=device)[0]

    marks = [(path.name, stamp(path)) for path in (*done.weights, done.folder / CONFIG)]
    mark, exact = _digest(done.record.fingerprint, marks), dtype == torch.float32
    return Model(MIXTURE, mark, exact, InMixture(plan, mixture, 0), tokenizer, step_through, loaded)


def _tokenizer(source: Source, own: Any) -> Any:
    """Load a model's own tokenizer, or take the mixture's."""
    try:
        return load_tokenizer(source)
    except LazyMoEError:
        return own


def _mark(source: Source) -> tuple[Any, ...]:
    """Give what tells a model from any other: its layout and its files."""
    return source.fingerprint, sorted(source.stamps.items())


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr((PASS, *parts)).encode()).hexdigest()[:32]
