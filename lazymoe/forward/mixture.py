"""A layer's feed-forward network as a mixture: the experts' own weights, one expert in memory at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lazymoe.architectures.records import Dense
from lazymoe.checkpoint.source import Source
from lazymoe.checkpoint.tensors import TensorInfo
from lazymoe.forward.inputs import Inputs, Watch
from lazymoe.forward.parts import After, Names
from lazymoe.forward.stream import Stream, Weights
from lazymoe.planning.memory import BATCH
from lazymoe.planning.plan import Constant, Piece, Plan

NEGLIGIBLE = 0.02  # an expert's weight for a token under which it isn't run where only the states are wanted
# what experts, by their numbers, make of rows [n, H]: of each expert what comes of them, one by one
Answering = Callable[[Sequence[tuple[int, Iterable[Tensor]]]], Iterator[Iterator[Tensor]]]


def route(gates: Tensor, x: Tensor, top_k: int, scores: str = "softmax") -> tuple[Tensor, Tensor]:
    """Route tokens: their top-k experts and the weights of these, which sum up to 1 for a token.

    With softmax as in Mixtral (https://arxiv.org/abs/2401.04088), with sigmoids as in DeepSeek-V3
    (https://arxiv.org/abs/2412.19437).

    Args:
        gates: one layer's router ``[E, H]``.
        x: what it reads ``[n, H]``.
        top_k: how many experts a token goes to.
        scores: what makes weights of the logits, see `Host.scores`.

    Returns:
        The experts, int64, and their weights, both ``[n, k]``, from the largest logit down.
    """
    logits, chosen = (x @ gates.T).topk(top_k, dim=-1)
    if scores == "softmax":
        return chosen, logits.softmax(-1)
    weights = logits.sigmoid()
    return chosen, weights / weights.sum(-1, keepdim=True)


def leave_out(chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out a token's experts that hardly count: the others' weights sum up to 1 again.

    As experts are fine-tunes of one model, that changes the states about as much as rounding to bfloat16 does.

    Args:
        chosen, weights: experts of each token and their weights ``[n, k]``.

    Returns:
        The same, -1 for an expert that is left out, and its weight 0.
    """
    kept = weights >= NEGLIGIBLE
    weights = weights * kept
    return chosen.where(kept, -1), weights / weights.sum(-1, keepdim=True)


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
    expert: Weights, dense: Dense, module: nn.Module, layer: int, scale: float | None, rows: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Run a layer's feed-forward network with the weights of an expert.

    Args:
        expert: the model.
        dense, module, layer, scale: as in `fill`.
        rows: what it reads, some ``[n, H]`` at a time.

    Yields:
        What comes of them, ``[n, H]`` each.
    """
    fill(dense, module, expert.load, layer, scale)
    yield from map(functools.partial(type(module).forward, module), rows)


def mix(
    answering: Answering,
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    order: Sequence[int],
    watch: Watch = lambda *_: nullcontext(),
) -> Tensor:
    """Run the chosen experts on their tokens, and add up what they make of these ``[n, H]``.

    Args:
        answering: runs experts.
        x: their input ``[n, H]``.
        chosen, weights: experts of each token, -1 for none, and their weights ``[n, k]``.
        order: the order in which experts are added up.
        watch: told of each expert while it runs.
    """
    out = torch.zeros_like(x)
    places = ((expert, (chosen == expert).nonzero(as_tuple=True)) for expert in order)
    where = [(expert, token, place) for expert, (token, place) in places if len(token)]
    made = answering([(expert, _rows(x, expert, token, watch)) for expert, token, _ in where])
    for (_, token, place), parts in zip(where, made, strict=True):
        for some, at, part in zip(token.split(BATCH), place.split(BATCH), parts, strict=True):
            out.index_add_(0, some, part * weights[some, at, None])
    return out


def shared(
    plan: Plan, answering: Answering, x: Tensor, gate: Tensor, watch: Watch = lambda *_: nullcontext()
) -> Tensor | float:
    """Run the shared experts: what they add for each token ``[n, H]``, nothing if there are none.

    Args:
        plan: what the mixture is made by.
        answering, x, watch: as in `mix`; the shared experts' numbers are those after the others'.
        gate: their gate ``[1, H]``, or of no rows where they have none.
    """
    if not plan.shared_experts:
        return 0.0
    every, out = torch.arange(len(x), device=x.device), torch.zeros_like(x)
    numbers = range(plan.experts, plan.experts + plan.shared_experts)
    for parts in answering([(number, _rows(x, number, every, watch)) for number in numbers]):
        for some, part in zip(every.split(BATCH), parts, strict=True):
            out[some] += part
    return out.mul_((x @ gate.T).sigmoid()) if len(gate) else out


def _rows(x: Tensor, expert: int, token: Tensor, watch: Watch) -> Iterator[Tensor]:
    """Yield the rows of some tokens ``[n]``; the expert is watched until the next are asked for."""
    for some in token.split(BATCH):
        with watch(expert, some):
            yield x[some]


class Routing(NamedTuple):
    """The routing of a mixture, as in `report.Report`: shares and first ``[L][D][E]``, accuracy ``[L][D]``, entropy
    ``[L]``."""

    shares: list[list[list[float]]]
    first: list[list[list[float]]]
    accuracy: list[list[float]]
    entropy: list[float]


class Tally:
    """Counts which experts the tokens of each domain go to, layer after layer.

    Attributes:
        counts: of all choices, and of first ones, float64 ``[L, D, 2, E]``.
        bits: the entropies of tokens' weights, summed up, float64 ``[L, D]``.
    """

    def __init__(self, plan: Plan, domains: int) -> None:
        """Count none yet.

        Args:
            plan: what the mixture is made by.
            domains: how many there are; an expert's by its number, and others after these.
        """
        self.counts = torch.zeros(plan.layers, domains, 2, plan.experts, dtype=torch.float64)
        self.bits = torch.zeros(plan.layers, domains, dtype=torch.float64)

    def add(self, layer: int, domain: int, chosen: Tensor, weights: Tensor) -> None:
        """Count tokens.

        Args:
            layer: by number.
            domain: that they are of, by number.
            chosen, weights: experts of each token, from the largest weight down, and their weights ``[n, k]``.
        """
        for kind, choices in enumerate((chosen.flatten(), chosen[:, 0])):
            self.counts[layer, domain, kind] += choices.bincount(minlength=self.counts.shape[-1]).cpu()
        self.bits[layer, domain] -= float((weights * weights.clamp(min=1e-9).log2()).double().sum())

    def routing(self) -> Routing:
        """Divide by how many there were of each domain, which must have some."""
        tokens = self.counts[:, :, 1].sum(-1)  # [L, D]
        shares, first = (self.counts / self.counts.sum(-1, keepdim=True)).unbind(2)  # [L, D, E] both
        accuracy = first.diagonal(dim1=1, dim2=2)  # [L, D]
        entropy = (self.bits / tokens).mean(1)
        return Routing(shares.tolist(), first.tolist(), accuracy.tolist(), entropy.tolist())


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
) -> Stream:
    """Run all layers of a finished mixture, a layer and in it an expert at a time.

    Args:
        plan: what it was made by.
        mixture: it, opened.
        batches: token ids ``[B, T]`` each, int64.
        device: where to compute.
        seen: told of each layer and batch, by number, the experts of its tokens and their weights ``[B * T, k]``.
        inputs: shown what the maps in the layers read.

    Returns:
        The pass, ready to `finish`.

    Raises:
        SourceError: if a state becomes NaN or infinite, or there is a token that the mixture doesn't have.
    """
    experts = [InMixture(plan, mixture, number) for number in range(1, len(plan.sources))]
    body = InMixture(plan, mixture, 0)
    stream = Stream(body, batches, device)
    sizes = [ids.numel() for ids in batches]

    def gate(name: str | None) -> Tensor:
        assert name is not None  # asked for only where there is one
        return mixture.load(plan.dense.within(stream.next) + name).float().to(device)

    def feed_forward(module: nn.Module, x: Tensor, _: After) -> Tensor:
        chosen, weights = route(gate(plan.host.router), x, plan.top_k, plan.host.scores)
        for batch, routing in enumerate(zip(chosen.split(sizes), weights.split(sizes), strict=True)):
            seen(stream.next, batch, *routing)
        own = gate(plan.host.shared_gate) if plan.gates > plan.experts else x[:0]
        watch = [inputs.experts(f"{plan.dense.within(stream.next)}{plan.dense.module}.", module)] if inputs else []

        def answering(asked: Sequence[tuple[int, Iterable[Tensor]]]) -> Iterator[Iterator[Tensor]]:
            return (answers(experts[n], plan.dense, module, stream.next, None, rows) for n, rows in asked)

        out = mix(answering, x, chosen, weights, range(plan.experts), *watch)
        return out.add_(shared(plan, answering, x, own, *watch))

    def put(names: Names, read: Callable[[int], Tensor]) -> dict[str, Tensor]:
        assert inputs
        whole = {f"{plan.dense.within(stream.next)}{name}.weight": name for name in names}
        inputs.body(list(whole), read)
        return {short: body.load(name) for name, short in whole.items()}

    for _ in range(plan.layers):
        stream.step(feed_forward=(plan.dense.module, feed_forward), merge=put if inputs else None)
    return stream
