"""The prompts on their way through the mixture: what maps and the router of a layer read there, and what the experts
make of it. After each layer the states can be kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lazymoe.checkpoint.safetensors import open_file, write_header
from lazymoe.computing import STATES, broken
from lazymoe.computing.correction import Correction
from lazymoe.computing.groups import Group
from lazymoe.computing.places import Each, Passing, Take
from lazymoe.computing.router_fit import fit_router, lesson
from lazymoe.computing.shared_weights import Average, Read, as_bytes, finite, merge_maps
from lazymoe.files import SEAL, is_sound, write_sealed
from lazymoe.forward.device import coarsely, halved
from lazymoe.forward.inputs import Inputs, Map
from lazymoe.forward.mixture import Rows, answers, fill, mix, run_rows
from lazymoe.forward.parts import After, Names
from lazymoe.forward.routing import Routing, Tally, add_shared, leave_out, route
from lazymoe.forward.stream import Stream
from lazymoe.output.writer import Sink
from lazymoe.planning.memory import reads_states
from lazymoe.planning.plan import Computed, Plan
from lazymoe.recipe.schema import Recipe

# tensors of a file of states: the routers fitted so far, and the two of the tally
GATES, COUNTS, BITS = "gates", "counts", "bits"
Reads = Iterator[Read]  # of each expert what its prompts give a map to read, or None


class Walk:
    """The prompts on their way through the mixture, of whose layers the sweep asks one after the other.

    Attributes:
        stream: their states.
        inputs: what maps read, where the columns of weights are to be counted.
    """

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        writer: Sink[Any],
        folder: Path,
        average: Average,
        groups: Sequence[Group],
        order: Sequence[int],
        device: str,
        each: Each,
        take: Take,
    ) -> None:
        self.recipe, self.plan, self.writer, self.folder = recipe, plan, writer, folder
        self.average, self.device, self.each, self.take = average, device, each, take
        self.order = torch.tensor(order, device=device)
        self.by_states = reads_states(recipe, plan)
        texts = [batch for group in groups for batch in group.batches]
        self.real = [real.to(device) for _, real in texts]
        whose = [(group.place, group.sign, group.varied) for group in groups for _ in group.batches]
        self.own = [[i for i, of in enumerate(whose) if of == (place, 1, False)] for place in range(plan.experts)]
        self.lesson = lesson(groups, device) if recipe.gate_mode == "fit" else None
        self.inputs: Inputs | None = None
        if plan.weighted:
            counted = {i for batches in self.own for i in batches}
            texts_of = [real if i in counted else torch.zeros_like(real) for i, real in enumerate(self.real)]
            self.inputs = Inputs(texts_of, device)
        body = average if plan.shared != "base" else Passing(plan.sources[0], 0, take)
        self.stream = Stream(body, [ids for ids, _ in texts], device)
        self.gates: list[Tensor] = []  # the fitted rows of each layer [gates, H]
        self.tally = Tally(plan, plan.experts)  # of positive prompts
        self.corrections: dict[int, Correction] = {}  # by the expert's number
        self.corrected: list[tuple[int, str, Tensor]] = []  # what they made of this layer: source, name, weight
        for place, expert in enumerate(order):
            if expert in plan.corrected:
                given = {i: texts[i] for i, of in enumerate(whose) if of[:2] == (place, 1)}
                tokens = sum(group.tokens for group in groups if (group.place, group.sign) == (place, 1))
                self.corrections[expert] = Correction(plan, expert, given, tokens, device)

    @property
    def fitted(self) -> Tensor | None:
        """The fitted rows of each layer ``[L, gates, H]``, if they are fitted."""
        return torch.stack(self.gates).cpu() if self.lesson else None

    @property
    def routing(self) -> Routing | None:
        """Where the tokens of each expert's prompts went, if all have some."""
        return self.tally.routing() if all(self.own) else None

    def step(self) -> None:
        """Run a layer."""
        feed_forward = self.plan.dense.module, self._feed_forward
        halted = self.plan.shared == "regmean" or self.inputs
        self.stream.step(feed_forward=feed_forward, merge=self._put if halted else None)

    def give(self) -> None:
        """Hand on what was corrected."""
        for source, name, weight in self.corrected:
            self.writer.give(source, name, [weight])
        self.corrected.clear()

    def read_at_end(self) -> Reads | None:
        """Give what the head reads, after all layers, if that is known."""
        states = enumerate(self.stream.finish())  # which are asked for in their order
        return self._read(lambda i: next(given for n, given in states if n == i)) if self.by_states else None

    def _put(self, names: Names, read: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Look at what maps of this layer read, and merge them if they are merged by that; see `parts.Merge`."""
        whole = {f"{self.plan.dense.within(self.stream.next)}{name}.weight": name for name in names}
        if self.inputs:
            self.inputs.body(list(whole), read)
        if self.plan.shared == "regmean":
            reads = self._read(read) if self.by_states else None
            merge_read(self.average, self.plan, list(whole), reads, self.device, self.each)
        return {short: self.stream.source.load(name) for name, short in whole.items()}

    def _read(self, read: Callable[[int], Tensor]) -> Reads:
        """Yield the rows of each expert's positive prompts, a batch ``[n, in]`` at a time, of what `read` gives of a
        batch ``[B, T, in]``."""
        for batches in self.own:
            yield (read(i)[self.real[i]] for i in batches)

    def _feed_forward(self, module: nn.Module, x: Sequence[Tensor], after: After) -> Sequence[Tensor]:
        """Fit this layer's router on what it reads, of each batch ``[B * T, H]``, correct the experts, and run the
        mixture's feed-forward network."""
        plan, layer = self.plan, self.stream.next
        router, own = self._routers(x)
        left = set(self.corrections)

        scales = [expert.residual_scale for expert in self.recipe.every_expert]

        def corrected(
            expert: int, rows: Iterable[Tensor], counting: Iterable[Tensor] | None = None
        ) -> Iterator[Tensor]:
            left.remove(expert)
            own = Passing(plan.sources[expert + 1], expert + 1, self.take)
            fill(plan.dense, module, own.load, layer, scales[expert])
            name, weight = self.corrections[expert].correct(module, x, after)
            self.corrected.append((expert + 1, name, weight.cpu()))
            if not self.inputs:
                self.give()  # at once: it takes memory
            yield from run_rows(module, rows, counting)

        def answering(asked: Sequence[Rows]) -> Iterator[Iterator[Tensor]]:
            plain = [(e + 1, (plan.dense, module, layer, scales[e], *given)) for e, *given in asked if e not in left]
            made = self.each(answers, plain)
            for expert, rows, counting in asked:
                yield corrected(expert, rows, counting) if expert in left else next(made)

        whose = {i: expert for expert, batches in zip(self.order.tolist(), self.own, strict=True) for i in batches}
        routed = []
        for i, (rows, real) in enumerate(zip(x, self.real, strict=True)):
            chosen, weights = route(router, rows, plan.top_k, plan.host.scores)
            chosen = self.order[chosen]  # by the experts' numbers
            if i in whose:
                self.tally.add(layer, whose[i], chosen[real.flatten()], weights[real.flatten()])
            routed.append(add_shared(plan, own, rows, *leave_out(chosen, weights)))
        names = f"{plan.dense.within(layer)}{plan.dense.module}."
        watch = self.inputs.experts(names, module) if self.inputs else None
        # what corrects an expert takes its weights in float32
        with coarsely(), nullcontext() if self.corrections else halved(module):
            order = [*self.order.tolist(), *range(plan.experts, plan.experts + plan.shared_experts)]
            out: list[Tensor] = []
            mix(answering, x, routed, order, out, watch)
            for expert in sorted(left):  # no token went to it
                list(corrected(expert, ()))
            return out

    def _routers(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fit or read this layer's router ``[E, H]``, its rows by their places, and its shared expert's gate
        ``[1, H]``, or of no rows."""
        plan, prefix = self.plan, self.plan.dense.within(self.stream.next)
        gated = plan.gates > plan.experts
        names = [prefix + plan.host.router, *([f"{prefix}{plan.host.shared_gate}"] if gated else [])]
        if self.lesson:
            rows, own = fit_router(self.lesson, x, plan.experts, gated)
            listed = torch.empty_like(rows).index_copy_(0, self.order, rows)
            self.gates.append(torch.cat([listed, own]))
            if not torch.isfinite(self.gates[-1]).all():
                raise broken()
            for name, gate in zip(names, (listed, own), strict=False):  # where there is one
                self.writer.give(0, name, [gate.cpu()])
            return rows, own
        found = [self.writer.computed[name].load().float().to(self.device) for name in names]
        return found[0][self.order], found[1] if gated else found[0][:0]

    def keep(self) -> None:
        """Keep the states and the routers so far, in place of those before."""
        tensors = {str(i): states for i, states in enumerate(self.stream.states)}
        for expert, correction in self.corrections.items():
            tensors |= {f"{expert}.{i}": states for i, states in enumerate(correction.stream.states)}
        tensors |= {COUNTS: self.tally.counts, BITS: self.tally.bits}
        if self.inputs:
            tensors |= {f"{i} {name}": _counted(self.inputs, (i, name)) for i, name in self.inputs.sums}
        if self.lesson:
            tensors[GATES] = torch.stack(self.gates)
        dtypes = {torch.float32: "F32", torch.float64: "F64"}
        header = write_header((name, dtypes[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items())
        file = self.folder / STATES.format(f"{self.stream.next:05}")
        write_sealed(file, (header, *(as_bytes(tensor) for tensor in tensors.values())))
        self._discard(but=file)

    def resume(self) -> int:
        """Go on after the last layer whose states were kept, if all that was computed up to there is written; give the
        number of the next."""
        for layer in range(self.plan.layers, 0, -1):
            file = self.folder / STATES.format(f"{layer:05}")
            if is_sound(file) and all(map(self._is_written, range(layer))):
                found = {name: tensor.load().to(self.device) for name, tensor in open_file(file).items()}
                self.gates = list(found.pop(GATES)) if self.lesson else []
                for key in [key for key in found if " " in key]:
                    assert self.inputs
                    number, _, name = key.partition(" ")
                    counted = found.pop(key).cpu()
                    self.inputs.sums[int(number), name] = counted[:-1]
                    self.inputs.counts[int(number), name] = int(counted[-1])
                self.tally.counts, self.tally.bits = found.pop(COUNTS).cpu(), found.pop(BITS).cpu()
                for expert, correction in self.corrections.items():
                    stream = correction.stream
                    stream.states = [found.pop(f"{expert}.{i}") for i in range(len(stream.states))]
                    stream.next = layer
                self.stream.states, self.stream.next = [found[str(i)] for i in range(len(found))], layer
                self._discard(but=file)
                break
        return self.stream.next

    def _is_written(self, layer: int) -> bool:
        """Tell whether all that is computed of a layer is written."""
        prefix = self.plan.dense.within(layer)
        parts = (part for o in self.plan.outputs if o.name.startswith(prefix) for part in o.parts)
        return all(self.writer.has(p.source, p.name) for p in parts if isinstance(p, Computed))

    def _discard(self, but: Path) -> None:
        """Delete the states that were kept but for those of one file."""
        for file in sorted(self.folder.glob(STATES.format("*"))):
            if file != but:
                file.unlink()
                file.with_name(file.name + SEAL).unlink(missing_ok=True)


def _counted(inputs: Inputs, which: Map) -> Tensor:
    """Give the sums of what a map reads, and of how many tokens that is, in one: ``[in + 1]``, float64."""
    return torch.cat([inputs.sums[which], torch.tensor([inputs.counts[which]], dtype=torch.float64)])


def merge_read(
    average: Average, plan: Plan, names: Sequence[str], reads: Reads | None, device: str, each: Each
) -> None:
    """Merge maps that read the same, into what is made of the average; one by one where what they read isn't known.

    Args:
        average: of the models.
        plan: of the mixture.
        names: of the maps' weights.
        reads: what they read.
        device: where to compute.
        each: has the models' part of the work done.
    """
    for together in [names] if reads else [[name] for name in names]:
        known = reads or unknown(plan)
        for name, weight in merge_maps(average.base, average.numbers, together, known, device, each).items():
            average.made[name] = finite(weight.to(average.dtype), name)


def unknown(plan: Plan) -> Reads:
    """Stand for what each expert's maps read, where its prompts don't tell.

    Args:
        plan: of the mixture.
    """
    return itertools.repeat(None, plan.experts)
