"""A layer's feed-forward network as a mixture: the experts' own weights, one expert in memory at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lazymoe.architectures.records import Dense
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.forward.device import halved
from lazymoe.forward.inputs import Inputs, Some, Watch, looked_at, run_network
from lazymoe.forward.parts import After, Names
from lazymoe.forward.routing import add_shared, route
from lazymoe.forward.skeleton import Weights
from lazymoe.forward.spilling import room_for_states
from lazymoe.forward.stream import Stream
from lazymoe.planning.memory import BATCH
from lazymoe.planning.plan import Constant, Piece, Plan

# an expert's number, what it reads, [n, H] each, and which of that count, if what its maps read is looked at
Rows = tuple[int, Iterable[Tensor], Iterable[Tensor] | None]
Answering = Callable[[Sequence[Rows]], Iterator[Iterator[Tensor]]]  # what each makes of them, one by one


def fill(
    dense: Dense, module: nn.Module, load: Callable[[str], Tensor], layer: int, scale: float | None = None
) -> None:
    """Give a dense layer's feed-forward module the weights of a model.

    Args:
        dense: the model's architecture.
        module: the layer's feed-forward module, changed in place.
        load: reads a tensor of the model, by its name.
        layer: the layer's number.
        scale: what its output is multiplied by, if anything.
    """
    outputs = [name for role, (name, _) in dense.ffn.items() if role.startswith("down")]
    for name, tensor in module.state_dict().items():
        name = f"{dense.module}.{name}"
        weight = load(dense.within(layer) + name)
        tensor.copy_(weight * scale if scale is not None and name in outputs else weight)


def answers(
    expert: Weights,
    dense: Dense,
    module: nn.Module,
    layer: int,
    scale: float | None,
    rows: Iterable[Tensor],
    counting: Iterable[Tensor] | None = None,
) -> Iterator[Tensor]:
    """Run a layer's feed-forward network with the weights of an expert.

    Args:
        expert: the model.
        dense, module, layer, scale: as in `fill`.
        rows: what it reads, some ``[n, H]`` at a time.
        counting: which of them count, if what the maps read is looked at.

    Yields:
        What comes of them, ``[n, H]`` each; with ``counting`` as `looked_at` has it.
    """
    fill(dense, module, expert.load, layer, scale)
    yield from run_rows(module, rows, counting)


def run_rows(module: nn.Module, rows: Iterable[Tensor], counting: Iterable[Tensor] | None) -> Iterator[Tensor]:
    """Run a feed-forward module that has its weights; see `answers`."""
    if counting is None:
        yield from map(functools.partial(run_network, module), rows)
    else:
        yield from looked_at(module, rows, counting)


def mix(
    answering: Answering,
    x: Sequence[Tensor],
    routed: Sequence[tuple[Tensor, Tensor]],
    order: Sequence[int],
    out: MutableSequence[Tensor],
    watch: Watch | None = None,
) -> None:
    """Run the chosen experts on their tokens, and add up what they make of these.

    Args:
        answering: runs experts.
        x: their input, of each batch ``[n, H]``.
        routed: experts of each of its tokens, -1 for none, and their weights, both ``[n, k]``.
        order: the order in which experts are added up.
        out: empty; of each batch what comes of it is put there ``[n, H]``.
        watch: looks at what the experts' maps read.
    """
    for rows in x:
        out.append(torch.zeros_like(rows))
    found = ((expert, list(_tokens(routed, expert))) for expert in order)
    where = [(expert, some) for expert, some in found if some]
    counting = [watch.counting(some) if watch else None for _, some in where]
    made = answering([(expert, _rows(x, some), real) for (expert, some), real in zip(where, counting, strict=True)])
    for (expert, some), real, parts in zip(where, counting, made, strict=True):
        parts = watch.look(expert, real, parts) if watch and real is not None else parts
        for (batch, token, place), part in zip(some, parts, strict=True):
            weights = routed[batch][1][token, place, None]  # [n, 1]
            out[batch] = out[batch].index_add_(0, token, part * weights)


def _tokens(routed: Sequence[tuple[Tensor, Tensor]], expert: int) -> Iterator[Some]:
    """Find the tokens of an expert, some of a batch at a time."""
    for batch, (chosen, _) in enumerate(routed):
        found = (part.split(BATCH) for part in (chosen == expert).nonzero(as_tuple=True))
        yield from ((batch, token, place) for token, place in zip(*found, strict=True) if len(token))


def _rows(x: Sequence[Tensor], where: Iterable[Some]) -> Iterator[Tensor]:
    """Yield the rows of tokens ``[n, H]``."""
    for batch, token, _ in where:
        yield x[batch][token]


class InMixture:
    """One of a plan's sources as it lies in the finished mixture, by its own names: of the base model that is the
    backbone, of an expert its feed-forward networks.
    """

    def __init__(self, plan: Plan, mixture: Source, source: int) -> None:
        """Find its tensors.

        Args:
            plan: what the mixture was made by.
            mixture: it, opened.
            source: number of the source in the plan.
        """
        whole = plan.sources[source]
        self.config, self.folder, self.dense = whole.config, mixture.folder, whole.dense
        self._parts: dict[str, dict[int, TensorInfo]] = {}  # by their place in the source's tensor
        for output in plan.outputs:
            at = 0
            for part in output.parts:
                if not isinstance(part, Constant) and part.source == source:
                    name = part.tensor.name if isinstance(part, Piece) else part.name
                    where = mixture.tensors[output.name].part(at, part.elements)
                    self._parts.setdefault(name, {}).setdefault(part.start, where)  # copies come after it
                at += part.elements
        self.tensors = {name: whole.tensors[name] for name in self._parts if name in whole.tensors}

    def load(self, name: str) -> Tensor:
        """Read a whole tensor, in the mixture's dtype.

        Args:
            name: of the tensor in the source.
        """
        parts = [where.read() for _, where in sorted(self._parts[name].items())]
        return torch.cat(parts).reshape(self.tensors[name].shape)

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        """Read rows of a matrix ``[N, H]`` that lies in the mixture in one piece: ``[n, H]``, in the mixture's dtype.

        Args:
            name: of the matrix in the source.
            indices: of the rows, n of them.
        """
        [where], width = self._parts[name].values(), self.tensors[name].shape[1]
        return torch.stack([where.read(i * width, (i + 1) * width) for i in indices])


def run(
    plan: Plan,
    mixture: Source,
    batches: Sequence[Tensor],
    device: str,
    seen: Callable[[int, int, Tensor, Tensor], None],
    inputs: Inputs | None = None,
    place: Path | None = None,
) -> Stream:
    """Run all layers of a finished mixture, a layer and in it an expert at a time.

    Args:
        plan: what it was made by.
        mixture: it, opened.
        batches: token ids ``[B, T]`` each, int64.
        device: where to compute.
        seen: told of each layer and batch, by number, the experts of its tokens and their weights ``[B * T, k]``.
        inputs: shown what the maps in the layers read.
        place: a folder for what there is of each token, if that isn't to be in memory.

    Returns:
        The pass, ready to `finish`.

    Raises:
        SourceError: if a state becomes NaN or infinite, or there is a token that the mixture doesn't have.
    """
    experts = [InMixture(plan, mixture, number) for number in range(1, len(plan.sources))]
    body = InMixture(plan, mixture, 0)
    stream = Stream(body, batches, device, place)

    def gate(name: str | None) -> Tensor:
        assert name is not None  # asked for only where there is one
        return mixture.load(plan.dense.within(stream.next) + name).float().to(device)

    def feed_forward(module: nn.Module, x: Sequence[Tensor], _: After) -> Sequence[Tensor]:
        router = gate(plan.host.router)
        own = gate(plan.host.shared_gate) if plan.gates > plan.experts else router[:0]
        routed = []
        for batch, rows in enumerate(x):
            chosen, weights = route(router, rows, plan.top_k, plan.host.scores)
            seen(stream.next, batch, chosen, weights)
            routed.append(add_shared(plan, own, rows, chosen, weights))
        watch = inputs.experts(f"{plan.dense.within(stream.next)}{plan.dense.module}.", module) if inputs else None

        def answering(asked: Sequence[Rows]) -> Iterator[Iterator[Tensor]]:
            return (answers(experts[n], plan.dense, module, stream.next, None, rows, real) for n, rows, real in asked)

        out = room_for_states(place, device)
        with halved(module):
            mix(answering, x, routed, range(plan.experts + plan.shared_experts), out, watch)
        return out

    def put(names: Names, read: Callable[[int], Tensor]) -> dict[str, Tensor]:
        assert inputs
        whole = {f"{plan.dense.within(stream.next)}{name}.weight": name for name in names}
        inputs.body(list(whole), read)
        return {short: body.load(name) for name, short in whole.items()}

    for _ in range(plan.layers):
        stream.step(feed_forward=(plan.dense.module, feed_forward), merge=put if inputs else None)
    return stream
