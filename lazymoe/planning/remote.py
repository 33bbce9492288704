"""What is read of models that stay on the Hub, and the disk that it takes to do so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lazymoe.checkpoint.source import Source
from lazymoe.planning.memory import kept_models, late_embeddings, reads_prompts, sweeps
from lazymoe.planning.plan import Piece, Plan
from lazymoe.recipe.schema import STREAMED, Recipe

WINDOW = 400_000_000  # bytes held where each is read once: enough to have many ranges on their way


class Remote(NamedTuple):
    """What is read where it is.

    Attributes:
        nbytes: of all that is read, each byte once.
        disk: the most bytes to hold on the disk: two layers of all models where something is computed, so that the next
            one arrives meanwhile, and what is kept; else none.
        memory: the most bytes to hold in memory, for that.
        kept: names of tensors that are read when a sweep begins and again when it ends.
        held: bytes of those.
    """

    nbytes: int
    disk: int
    memory: int
    kept: frozenset[str] = frozenset()
    held: int = 0


def remote(recipe: Recipe, plan: Plan, elsewhere: bool = False) -> Remote:
    """Find what a merge would read of files that aren't here.

    Args:
        recipe: what is wanted.
        plan: what it comes to.
        elsewhere: find it for another machine, which has none of them.
    """
    layers, kept, held = Counter[int | None](), _kept(recipe, plan), 0
    models = {source.reference: source for source in plan.sources}  # the base model is often an expert too
    for reference, name in {(plan.sources[number].reference, name) for number, name in _read(recipe, plan)}:
        source = models[reference]
        if name in source.tensors and _is_away(source, name, elsewhere):
            layers[plan.dense.layer_of(name)] += source.tensors[name].nbytes
            held += source.tensors[name].nbytes if name in kept else 0
    total, room = layers.total(), two_layers(layers)
    if recipe.gate_mode in STREAMED or sweeps(recipe, plan):
        return Remote(total, room + held, 0, kept, held)
    return Remote(total, 0, min(room, WINDOW))


def whole(models: Iterable[Source], elsewhere: bool = False) -> Remote:
    """Find what would be read of files that aren't here, if models were read whole, a layer of all of them at a time.

    Args:
        models: those that are read together.
        elsewhere: as in `remote`.
    """
    layers, kept, held = Counter[int | None](), set[str](), 0
    for source in {source.reference: source for source in models}.values():
        assert source.dense
        tied = {source.embeddings} if source.head not in source.tensors else set[str]()
        for name, tensor in source.tensors.items():
            if _is_away(source, name, elsewhere):
                layers[source.dense.layer_of(name)] += tensor.nbytes
                held += tensor.nbytes if name in tied else 0
        kept |= tied
    return Remote(layers.total(), two_layers(layers) + held, 0, frozenset(kept), held)


def two_layers(layers: Counter[int | None]) -> int:
    """Count the bytes to hold of what is read a layer at a time, so that the next one arrives while one is worked on.

    Args:
        layers: bytes of each, by its number; by None those outside.
    """
    return 2 * max((nbytes for layer, nbytes in layers.items() if layer is not None), default=layers[None])


def _kept(recipe: Recipe, plan: Plan) -> frozenset[str]:
    """Name what is read when a sweep begins and again when it ends: tied embeddings, which are written as the head."""
    swept = late_embeddings(plan) and reads_prompts(recipe, plan) and not kept_models(plan)
    return frozenset({plan.dense.embeddings} if swept else ())


def _read(recipe: Recipe, plan: Plan) -> set[tuple[int, str]]:
    """List the tensors that are read, each as the number of its source and its name."""
    read = {(p.source, p.tensor.name) for o in plan.outputs for p in o.parts if isinstance(p, Piece)}
    backbone, ffn = plan.dense.all_shapes(plan.sources[0].config)
    if plan.shared != "base":
        read |= {(number, name) for number in range(1 + plan.experts) for name in backbone}
    for expert in plan.corrected:  # a pass through its own model
        read |= {(expert + 1, name) for name in (*backbone, *ffn)}
    if recipe.gate_mode in STREAMED and recipe.gate_mode != "fit":  # a pass through the base model itself
        read |= {(0, name) for name in (*backbone, *ffn)}
    return read


def _is_away(source: Source, name: str, elsewhere: bool) -> bool:
    """Tell whether a tensor's file isn't here; of what is worked out from several, whether one isn't."""
    if elsewhere:
        return bool(source.readable_there)
    lies = source.tensors[name].span()
    return not lies.path.exists() if lies else bool(source.away)
