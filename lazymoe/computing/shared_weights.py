"""Weights that all experts share: attention, norms, embeddings, head. From the base model, or merged from the experts.

`average`: the mean over the experts (BTX, https://arxiv.org/abs/2403.07816).

`regmean`: for each matrix the one whose outputs are nearest to every expert's own (RegMean,
https://arxiv.org/abs/2212.09849), in closed form:

    W = W0 + (sum_e D_e G_e) (sum_e G_e)^-1

where W0 is the base model's matrix, D_e what expert e changed in it, and G_e an estimate of the second moments of its
inputs in that expert's domain: half from the states of the expert's own prompts, half from D_e itself (D_e^T D_e), for
fine-tuning moves a matrix in the directions of its inputs (WUDI, https://arxiv.org/abs/2503.08099). Norms are averaged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.safetensors import write_header
from lazymoe.checkpoint.source import HEAD, Source
from lazymoe.checkpoint.tensors import CODES
from lazymoe.computing import shared_files
from lazymoe.computing.order import canonical
from lazymoe.errors import error
from lazymoe.files import SEAL, seal_of, settle, write_sealed, write_whole
from lazymoe.forward.mixture import module_name
from lazymoe.forward.stream import Stream
from lazymoe.forward.tokens import batches, load_tokenizer, pack
from lazymoe.planning.memory import ROWS
from lazymoe.planning.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe

RIDGE = 0.1  # of the identity in each G_e, whose other parts have mean eigenvalue 1
Names = tuple[str, ...]


@torch.no_grad()
def share(recipe: Recipe, plan: Plan, folder: Path, device: str, progress: Progress) -> None:
    """Compute the shared weights and write them, a layer a file, in the output's dtype and by the output's names.

    Args:
        recipe, plan: what is wanted; the sources must be on the disk.
        folder: where the files go.
        device: where to compute.
        progress: told of the layers done, stage ``share``.

    Raises:
        SourceError: if the base model's tokenizer can't be loaded, or a state or a merged weight is NaN or infinite.
    """
    order = canonical(recipe, plan)
    experts = [plan.expert_sources[e] for e in order]
    prompts = [recipe.experts[e].positive for e in order]
    passes: list[_Pass] = []
    if plan.shared == "regmean" and all(prompts):
        tokenizer = load_tokenizer(plan.sources[0])
        passes = [_Pass(s, batches(pack(tokenizer, t)), device) for s, t in zip(experts, prompts, strict=True)]
    *files, outer = shared_files(plan.layers)
    for layer, file in enumerate(files):
        _save(plan, folder / file, _layer(plan, layer, experts, passes, device))
        progress("share", layer + 1, plan.layers)
    _outer(plan, experts, [p.last() for p in passes], device, folder / outer)


class _Pass:
    """An expert's own prompts on their way through it, and the second moments of what its linear maps read."""

    def __init__(self, source: Source, texts: Sequence[tuple[Tensor, Tensor]], device: str) -> None:
        self.stream = Stream(source, [ids for ids, _ in texts], device)
        self.real = [real.to(device) for _, real in texts]

    def step(self, feed_forward: str) -> dict[Names, Tensor]:
        """Run a layer.

        Args:
            feed_forward: name of its feed-forward module, whose maps don't count.

        Returns:
            The sum of x^T x over the real tokens ``[in, in]``, by the names of the maps that read x.
        """
        moments: dict[Names, Tensor] = {}
        seen: dict[str, Tensor] = {}
        masks = iter(self.real)

        def gather(*_: object) -> None:
            readers: dict[int, list[str]] = {}
            for name, x in seen.items():
                readers.setdefault(x.data_ptr(), []).append(name)
            real = next(masks)
            for names in readers.values():
                _add(moments, tuple(names), seen[names[0]][real])
            seen.clear()

        def watch(layer: nn.Module) -> None:
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and not name.startswith(feed_forward + "."):
                    module.register_forward_pre_hook(
                        lambda _, args, name=name: seen.__setitem__(f"{name}.weight", args[0])
                    )
            layer.register_forward_hook(gather)

        self.stream.step(watch)
        return moments

    def last(self) -> Tensor:
        """Sum up x^T x ``[H, H]`` of what the head reads, after all layers."""
        moments: dict[Names, Tensor] = {}
        for states, real in zip(self.stream.finish(), self.real, strict=True):
            _add(moments, (), states[real])
        return moments[()]


def _add(moments: dict[Names, Tensor], names: Names, x: Tensor) -> None:
    """Add x^T x, of more inputs ``[n, in]``, to the moments of these maps."""
    squares = x.T @ x  # [in, in]
    moments[names] = moments[names].add_(squares) if names in moments else squares


def _layer(
    plan: Plan, layer: int, experts: Sequence[Source], passes: Sequence[_Pass], device: str
) -> dict[str, Tensor]:
    """Merge the tensors of one layer, by their names in the output."""
    base, prefix = plan.sources[0], LAYER.format(layer=layer)
    shapes = plan.dense.layer_shapes(layer, base.config)
    matrices = [name for name, size in shapes.items() if len(size) == 2 and plan.shared == "regmean"]
    merged = {name: _mean(base, experts, prefix + name) for name in shapes if name not in matrices}
    totals: dict[Names, Tensor] = {}
    weighted: dict[str, Tensor] = {}
    for e, expert in enumerate(experts):
        inputs = passes[e].step(module_name(plan)) if passes else {}
        for group in inputs or [(name,) for name in matrices]:  # maps that read the same input
            # D_e of each map, and the moments G_e of what all of them read
            deltas = {name: _delta(base, expert, prefix + name).to(device) for name in group}  # [out, in]
            stacked = torch.cat(list(deltas.values()))
            moments = _moments(stacked.T @ stacked, inputs.get(group))
            totals[group] = totals.get(group, 0) + moments
            for name, delta in deltas.items():
                weighted[name] = weighted.get(name, 0) + delta @ moments
    # W0 + (sum_e D_e G_e) (sum_e G_e)^-1, by one factorisation for the group
    for group, total in totals.items():
        factor = torch.linalg.cholesky(total)
        for name in group:
            right = weighted.pop(name)
            merged[name] = base.load(prefix + name).float() + torch.cholesky_solve(right.T, factor).T.cpu()
    return {prefix + name: tensor for name, tensor in merged.items()}


def _outer(plan: Plan, experts: Sequence[Source], last: Sequence[Tensor], device: str, file: Path) -> None:
    """Merge the tensors outside the layers, some rows at a time: a vocabulary can be larger than any layer."""
    base, dtype = plan.sources[0], plan.config["dtype"]
    names = [name for name in plan.dense.outer if name in base.tensors]
    head = HEAD if HEAD in names else names[0]  # tied embeddings are merged as the head
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(write_header((name, CODES[dtype], base.tensors[name].shape) for name in names))
        for name in names:
            solve = _head(base, experts, name, last, device) if name == head and plan.shared == "regmean" else None
            for start in range(0, base.tensors[name].shape[0], ROWS):
                rows = solve(start) if solve else _mean(base, experts, name, start, start + ROWS)
                rows = rows.to(getattr(torch, dtype))
                _check_finite(name, rows)
                f.write(memoryview(rows.contiguous().view(torch.uint8).numpy()))  # type: ignore[arg-type]
    write_whole(file.with_name(file.name + SEAL), seal_of(temporary))
    settle(temporary, file)


def _head(
    base: Source, experts: Sequence[Source], name: str, last: Sequence[Tensor], device: str
) -> Callable[[int], Tensor]:
    """Prepare what merges rows of the head, ``[n, H]``, given the first of them."""
    width = base.tensors[name].shape[1]
    moments = []
    for e, expert in enumerate(experts):
        gram = torch.zeros(width, width, device=device)
        for start in range(0, base.tensors[name].shape[0], ROWS):
            delta = _delta(base, expert, name, start, start + ROWS).to(device)
            gram += delta.T @ delta
        moments.append(_moments(gram, last[e] if last else None))
    factor = torch.linalg.cholesky(_sum(moments))

    def solve(start: int) -> Tensor:
        deltas = (_delta(base, expert, name, start, start + ROWS).to(device) for expert in experts)
        weighted = _sum(d @ m for d, m in zip(deltas, moments, strict=True))
        return _rows(base, name, start, start + ROWS) + torch.cholesky_solve(weighted.T, factor).T.cpu()

    return solve


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors up, at least one, without holding more than two of them."""
    return functools.reduce(torch.add, tensors)


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


def _mean(base: Source, experts: Sequence[Source], name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Average rows of a tensor over the experts, float32."""
    mean = _rows(base, name, start, stop)
    for expert in experts:
        mean += _delta(base, expert, name, start, stop) / len(experts)
    return mean


def _delta(base: Source, expert: Source, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Work out what an expert changed in rows of a tensor, float32.

    Tokens that only one of the two has count as unchanged.
    """
    rows = _rows(base, name, start, stop)
    theirs = _rows(expert, name, start, stop)[: len(rows)] if expert.has(name) else rows
    delta = torch.zeros_like(rows)
    delta[: len(theirs)] = theirs - rows[: len(theirs)]
    return delta


def _rows(source: Source, name: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Read rows of a tensor, float32, as many as there are; a vector's elements are its rows."""
    tensor = source.tensor(name)
    stop = min(stop or tensor.shape[0], tensor.shape[0])
    width = tensor.elements // tensor.shape[0]
    flat = tensor.read(start * width, max(start, stop) * width).float()
    return flat.reshape(-1, *tensor.shape[1:])


def _save(plan: Plan, file: Path, tensors: dict[str, Tensor]) -> None:
    dtype = getattr(torch, plan.config["dtype"])
    cast = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in cast.items():
        _check_finite(name, tensor)
    write_sealed(file, save(cast))


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        what = f"'{name}' came out NaN or infinite when it was merged"
        raise error("source.broken", "shared_weights", what, "Use 'shared_weights: base', or look for a broken expert.")
