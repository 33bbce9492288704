"""What is computed before the writing: routers, a ``[experts, hidden]`` for each layer, and weights that experts share.

One file for each method; those that need activations share the layer-streamed pass in `stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lazymoe.errors import Problem, error
from lazymoe.families.types import LAYER
from lazymoe.header import Tensor, read_header
from lazymoe.plan import Plan
from lazymoe.progress import Progress
from lazymoe.recipe import Recipe
from lazymoe.source import Source, read_bytes
from lazymoe.write import generator, write_whole

if TYPE_CHECKING:
    import torch

ROUTER = "router.safetensors"
PARALLEL = 0.95  # cosine above which two rows send nearly the same tokens to both experts


def compute(
    recipe: Recipe, plan: Plan, folder: Path, seed: int, device: str | None, progress: Progress
) -> dict[str, Tensor]:
    """Work out all that the plan calls computed, shared weights and routers, into files of a folder.

    What an earlier call has finished there is kept.

    Args:
        recipe, plan: what is wanted; the sources must be on the disk.
        folder: where the files go.
        seed: of the random modes.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the layers done.

    Returns:
        Where each tensor is, by name.
    """
    import torch
    from safetensors.torch import save

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if plan.shared != "base" and not (folder / "shared-outer.safetensors").exists():
        from lazymoe.router.fit import canonical
        from lazymoe.router.shared import share

        share(recipe, plan, canonical(recipe, plan), folder, device, progress)
    if not (folder / ROUTER).exists():
        base, done = plan.sources[0], _computed(folder)
        body = replace(base, tensors=base.tensors | {n: replace(t, file=str(folder / t.file)) for n, t in done.items()})
        gates = _gates(recipe, plan, body, seed, device, progress)
        if not all(torch.isfinite(g).all() for g in gates):
            raise error("gate_mode", "the routers came out as NaN", "The base model may be broken: try it by itself.")
        dtype = getattr(torch, plan.config["dtype"])
        rows = {}
        for layer, gate in enumerate(gates):
            prefix = LAYER.format(layer=layer)
            rows[prefix + plan.family.router] = gate[: plan.experts].to(dtype).contiguous()
            if plan.gates > plan.experts:
                rows[f"{prefix}{plan.family.shared_gate}"] = gate[plan.experts :].to(dtype).contiguous()
        write_whole(folder / ROUTER, save(rows))
    return _computed(folder)


def _computed(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in (*sorted(folder.glob("shared-*.safetensors")), folder / ROUTER):
        if file.exists():
            found |= read_header(file.name, file.stat().st_size, partial(read_bytes, file))
    return found


def _gates(recipe: Recipe, plan: Plan, body: Source, seed: int, device: str, progress: Progress) -> list[torch.Tensor]:
    """The rows that are computed for each layer ``[gates, hidden]``, float32; see `Plan.gates`."""
    if recipe.gate_mode in ("random", "uniform_random"):
        from lazymoe.router.random import random_gates

        shape = (plan.layers, plan.gates, plan.hidden_size)
        return list(random_gates(recipe.gate_mode, shape, generator(seed, "router")))
    if recipe.gate_mode == "fit":
        from lazymoe.router.fit import fit_gates

        return fit_gates(recipe, plan, body, device, progress)
    from lazymoe.router.prompts import prompt_gates

    return list(prompt_gates(recipe, plan, device, progress).cpu())


def degenerate(plan: Plan, folder: Path) -> Iterator[Problem]:
    """Pairs of experts that the routers in a folder can hardly tell apart, with the layers where that is so."""
    import torch
    from safetensors.torch import load
    from torch.nn.functional import normalize

    by_name = load((folder / ROUTER).read_bytes())
    names = [LAYER.format(layer=layer) + plan.family.router for layer in range(plan.layers)]
    gates = torch.stack([by_name[name] for name in names])  # [L, E, H]
    rows = normalize(gates.float(), dim=-1)
    parallel = rows @ rows.mT > PARALLEL  # [L, E, E]
    for a in range(gates.shape[1]):
        for b in range(a + 1, gates.shape[1]):
            layers = parallel[:, a, b].nonzero().flatten().tolist()
            if layers:
                yield Problem(
                    f"experts {a + 1} and {b + 1}",
                    f"in {spell_layers(layers, len(gates))} the router can hardly tell "
                    "them apart, so both get nearly the same tokens",
                    "Give them prompts that differ more: whole questions of the kind each should answer.",
                )


def spell_layers(layers: list[int], of: int) -> str:
    """A list of layers as people write it: ``layers 0-3 and 7``."""
    if len(layers) == of:
        return "all layers"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"layer{'s' * (len(layers) > 1)} {listed}"
