"""One pass of the experts' prompts through the mixture that makes the mixture on its way: layer after layer its shared
weights are merged and its router is fitted, both by what the mixture itself reads there, and then it is run.

In a layer, norms are averaged first. What query, key and value maps read is taken, and these are merged; what the map
after attention reads is taken, and that is merged; the router is fitted on what it reads, and the experts run, each
corrected first if that is wanted, for which its own model's layer runs too. The head comes last, by the last states;
until then tied embeddings are the plain average. After each layer the states are kept, so that a sweep that was stopped
goes on there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.safetensors import open_file, write_header
from lazymoe.checkpoint.tensors import CODES
from lazymoe.computing import CORRECTED, ROUTERS, STATES, corrected_files, shared_files
from lazymoe.computing.correction import Correction
from lazymoe.computing.groups import Group, read_groups
from lazymoe.computing.order import canonical
from lazymoe.computing.router_fit import fit_router, lesson
from lazymoe.computing.shared_weights import Average, as_bytes, finite, merge_maps, squares, write_outer
from lazymoe.files import SEAL, is_sound, write_sealed
from lazymoe.forward.device import coarsely
from lazymoe.forward.mixture import fill, leave_out, mix, module_name, route, shared
from lazymoe.forward.parts import After, Names
from lazymoe.forward.stream import Stream
from lazymoe.planning.memory import reads_states
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

GATES = "gates"  # the tensor of a file of states that holds the routers fitted so far
Moments = Iterator[Tensor | None]  # of each expert x^T x of what its prompts give a map to read [in, in], or None


@torch.no_grad()
def sweep(recipe: Recipe, plan: Plan, folder: Path, device: str, progress: Progress) -> Tensor | None:
    """Work out the shared weights and, where they are fitted, the routers.

    Args:
        recipe, plan: what is wanted; the sources must be on the disk.
        folder: where shared weights go, a layer a file, in the output's dtype; what is sound there is kept. Routers
            that aren't fitted are there.
        device: where to compute.
        progress: told of the layers done, stage ``sweep``.

    Returns:
        The fitted rows of each layer ``[L, gates, H]``, float32, see `Plan.gates`; None if they aren't fitted.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded, or a state or a merged weight is NaN or infinite.
    """
    order = canonical(recipe, plan)
    average = Average(plan, order)
    groups = read_groups(recipe, plan, order, device)
    if groups:
        return _Walk(recipe, plan, folder, average, groups, order, device).run(progress)
    for layer, file in enumerate(shared_files(plan.layers)[:-1]):
        if not is_sound(folder / file):
            if plan.shared == "regmean":
                shapes = plan.dense.layer_shapes(layer, plan.sources[0].config)
                names = [LAYER.format(layer=layer) + name for name, size in shapes.items() if len(size) == 2]
                _merge(average, plan, names, None, device)
            _save_layer(average, plan, layer, folder / file)
        progress("sweep", layer + 1, plan.layers)
    _save_outer(average, plan, None, folder, device)
    return None


class _Walk:
    """The prompts on their way through the mixture."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        folder: Path,
        average: Average,
        groups: Sequence[Group],
        order: Sequence[int],
        device: str,
    ) -> None:
        self.recipe, self.plan, self.folder, self.average, self.device = recipe, plan, folder, average, device
        self.order = torch.tensor(order, device=device)
        self.fitted, self.by_states = recipe.gate_mode == "fit", reads_states(recipe, plan)
        texts = [batch for group in groups for batch in group.batches]
        self.real = [real.to(device) for _, real in texts]
        whose = [(group.place, 0 if group.varied else group.sign) for group in groups for _ in group.batches]
        self.own = [[i for i, of in enumerate(whose) if of == (place, 1)] for place in range(plan.experts)]
        self.lesson = lesson(groups, device) if self.fitted else None
        self.stream = Stream(average if plan.shared != "base" else plan.sources[0], [ids for ids, _ in texts], device)
        self.gates: list[Tensor] = []  # the fitted rows of each layer [gates, H]
        self.corrections: dict[int, Correction] = {}  # by the expert's number
        for place, expert in enumerate(order):
            if expert in plan.corrected:
                [tokens] = [g.tokens for g in groups if (g.place, g.sign, g.varied) == (place, 1, False)]
                own = {i: texts[i] for i in self.own[place]}
                self.corrections[expert] = Correction(plan, expert, own, tokens, device)

    def run(self, progress: Progress) -> Tensor | None:
        """Run all layers that aren't done yet; see `sweep`."""
        plan, merged = self.plan, self.plan.shared != "base"
        *files, outer = shared_files(plan.layers)
        self._resume()
        for layer in range(self.stream.next, plan.layers):
            self.stream.step(
                feed_forward=(module_name(plan), self._feed_forward),
                merge=self._merge if plan.shared == "regmean" else None,
            )
            if merged:
                _save_layer(self.average, plan, layer, self.folder / files[layer])
            self._keep()
            progress("sweep", layer + 1, plan.layers)
        if merged and not is_sound(self.folder / outer):
            last = self._moments(self.stream.finish().__getitem__) if self.by_states else None
            _save_outer(self.average, plan, last, self.folder, self.device)
        return torch.stack(self.gates).cpu() if self.fitted else None

    def _merge(self, names: Names, read: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Merge maps of this layer; see `parts.Merge`."""
        whole = {f"{LAYER.format(layer=self.stream.next)}{name}.weight": name for name in names}
        moments = self._moments(read) if self.by_states else None
        _merge(self.average, self.plan, list(whole), moments, self.device)
        return {short: self.average.load(name) for name, short in whole.items()}

    def _moments(self, read: Callable[[int], Tensor]) -> Moments:
        """Sum up x^T x ``[in, in]`` over each expert's positive prompts, of what `read` gives of a batch
        ``[B, T, in]``."""
        for batches in self.own:
            total = squares(read(batches[0])[self.real[batches[0]]])
            for i in batches[1:]:
                total += squares(read(i)[self.real[i]])
            yield total

    def _feed_forward(self, module: nn.Module, x: Tensor, after: After) -> Tensor:
        """Fit this layer's router on what it reads ``[N, H]``, correct the experts, and run the mixture's feed-forward
        network."""
        plan, layer = self.plan, self.stream.next
        rows, own = self._routers(x)
        sizes = [real.numel() for real in self.real]
        left = set(self.corrections)

        def load(expert: int, module: nn.Module) -> None:
            fill(plan, module, plan.sources[expert + 1], layer, self.recipe.every_expert[expert].residual_scale)
            if expert in left:
                left.remove(expert)
                name, weight = self.corrections[expert].correct(module, x.split(sizes), after)
                self._save(expert, name, weight)

        chosen, weights = route(rows, x, plan.top_k, plan.host.scores)
        chosen, weights = leave_out(self.order[chosen], weights)
        with coarsely():
            out = mix(load, module, x, chosen, weights, self.order.tolist())
            for expert in sorted(left):  # no token went to it
                load(expert, module)
            return out.add_(shared(plan, load, module, x, own))

    def _routers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fit or read this layer's router ``[E, H]``, its rows by their places, and its shared expert's gate
        ``[1, H]``, or of no rows."""
        plan, prefix = self.plan, LAYER.format(layer=self.stream.next)
        gated = plan.gates > plan.experts
        if self.lesson:
            rows, own = fit_router(self.lesson, x, plan.experts, gated)
            self.gates.append(torch.cat([torch.empty_like(rows).index_copy_(0, self.order, rows), own]))
            return rows, own
        found = open_file(self.folder / ROUTERS)
        rows = found[prefix + plan.host.router].load().float().to(self.device)
        own = found[f"{prefix}{plan.host.shared_gate}"].load().float().to(self.device) if gated else rows[:0]
        return rows[self.order], own

    def _save(self, expert: int, name: str, weight: Tensor) -> None:
        """Write a corrected matrix."""
        header = write_header([(name, CODES[self.plan.config["dtype"]], tuple(weight.shape))])
        file = CORRECTED.format(source=expert + 1, layer=self.stream.next)
        write_sealed(self.folder / file, (header, as_bytes(weight)))

    def _keep(self) -> None:
        """Keep the states and the routers so far, in place of those before."""
        tensors = {str(i): states for i, states in enumerate(self.stream.states)}
        for expert, correction in self.corrections.items():
            tensors |= {f"{expert}.{i}": states for i, states in enumerate(correction.stream.states)}
        if self.fitted:
            tensors[GATES] = torch.stack(self.gates)
        header = write_header((name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items())
        file = self.folder / STATES.format(f"{self.stream.next:05}")
        write_sealed(file, (header, *(as_bytes(tensor) for tensor in tensors.values())))
        discard_states(self.folder, but=file)

    def _resume(self) -> None:
        """Go on after the last layer whose states were kept, if all weights up to there are sound."""
        plan = self.plan
        shared = shared_files(plan.layers)[:-1] if plan.shared != "base" else []
        corrected = corrected_files(plan.corrected, plan.layers)
        for layer in range(plan.layers, 0, -1):
            file = self.folder / STATES.format(f"{layer:05}")
            names = [*shared[:layer], *itertools.chain(*corrected[:layer])]
            if file.exists() and all(is_sound(f) for f in (file, *(self.folder / name for name in names))):
                found = {name: tensor.load().to(self.device) for name, tensor in open_file(file).items()}
                self.gates = list(found.pop(GATES)) if self.fitted else []
                for expert, correction in self.corrections.items():
                    stream = correction.stream
                    stream.states = [found.pop(f"{expert}.{i}") for i in range(len(stream.states))]
                    stream.next = layer
                self.stream.states, self.stream.next = [found[str(i)] for i in range(len(found))], layer
                return discard_states(self.folder, but=file)


def discard_states(folder: Path, but: Path | None = None) -> None:
    """Delete the states that were kept.

    Args:
        folder: where they are.
        but: the file of those that stay, if any.
    """
    for file in sorted(folder.glob(STATES.format("*"))):
        if file != but:
            file.unlink()
            file.with_name(file.name + SEAL).unlink(missing_ok=True)


def _merge(average: Average, plan: Plan, names: Sequence[str], moments: Moments | None, device: str) -> None:
    """Merge maps that read the same, into what is made of the average; one by one where what they read isn't known."""
    for together in [names] if moments else [[name] for name in names]:
        merged = merge_maps(average.base, average.experts, together, moments or _unknown(plan), device)
        for name, weight in merged.items():
            average.made[name] = finite(weight.to(average.dtype), name)


def _save_layer(average: Average, plan: Plan, layer: int, file: Path) -> None:
    """Write a layer's shared weights, averaged but for those that are made already, and let them go."""
    names = [LAYER.format(layer=layer) + name for name in plan.dense.layer_shapes(layer, plan.sources[0].config)]
    tensors = {name: average.load(name) for name in names}
    header = write_header((name, CODES[plan.config["dtype"]], tuple(t.shape)) for name, t in tensors.items())
    write_sealed(file, (header, *(as_bytes(tensor) for tensor in tensors.values())))
    average.made.clear()


def _save_outer(average: Average, plan: Plan, last: Moments | None, folder: Path, device: str) -> None:
    """Write the shared weights outside the layers."""
    file = folder / shared_files(plan.layers)[-1]
    if not is_sound(file):
        write_outer(average, plan, (last or _unknown(plan)) if plan.shared == "regmean" else None, file, device)


def _unknown(plan: Plan) -> Moments:
    """Stand for each expert's moments where its prompts don't tell them."""
    return itertools.repeat(None, plan.experts)
