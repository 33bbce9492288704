"""What is computed before the writing: routers, a ``[experts, hidden]`` for each layer, and weights that experts share.

One file for each method; those that need activations share the layer-streamed pass in `stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lazymoe.errors import Problem, error
from lazymoe.families.types import LAYER
from lazymoe.floats import decode, encode
from lazymoe.header import CODES, Tensor, read_header, write_header
from lazymoe.plan import Plan
from lazymoe.progress import Progress
from lazymoe.read import read_bytes, read_tensor
from lazymoe.recipe import Recipe
from lazymoe.source import Source
from lazymoe.write import generator, write_whole

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
    if plan.shared != "base" and not (folder / "shared-outer.safetensors").exists():
        from lazymoe.router.fit import canonical
        from lazymoe.router.shared import share

        share(recipe, plan, canonical(recipe, plan), folder, pick_device(device), progress)
    if not (folder / ROUTER).exists():
        base, done = plan.sources[0], _computed(folder)
        body = replace(base, tensors=base.tensors | {n: replace(t, file=str(folder / t.file)) for n, t in done.items()})
        gates = _gates(recipe, plan, body, seed, device, progress)
        if not np.isfinite(gates).all():
            raise error("gate_mode", "the routers came out as NaN", "The base model may be broken: try it by itself.")
        rows = {}
        for layer, gate in enumerate(gates):
            prefix = LAYER.format(layer=layer)
            rows[prefix + plan.family.router] = gate[: plan.experts]
            if plan.gates > plan.experts:
                rows[f"{prefix}{plan.family.shared_gate}"] = gate[plan.experts :]
        dtype = CODES[plan.config["dtype"]]
        header = write_header((name, dtype, gate.shape) for name, gate in rows.items())
        write_whole(folder / ROUTER, header + b"".join(encode(gate, dtype) for gate in rows.values()))
    return _computed(folder)


def pick_device(device: str | None) -> str:
    """Where to compute: a CUDA device if there is one and nothing else is asked for."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _computed(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in (*sorted(folder.glob("shared-*.safetensors")), folder / ROUTER):
        if file.exists():
            found |= read_header(file.name, file.stat().st_size, partial(read_bytes, file))
    return found


def _gates(recipe: Recipe, plan: Plan, body: Source, seed: int, device: str | None, progress: Progress) -> np.ndarray:
    """The rows that are computed for each layer ``[L, gates, H]``, float32; see `Plan.gates`."""
    if recipe.gate_mode in ("random", "uniform_random"):
        from lazymoe.router.random import random_gates

        shape = (plan.layers, plan.gates, plan.hidden_size)
        return random_gates(recipe.gate_mode, shape, generator(seed, "router"))
    if recipe.gate_mode == "fit":
        from lazymoe.router.fit import fit_gates

        return fit_gates(recipe, plan, body, pick_device(device), progress).numpy()
    from lazymoe.router.prompts import prompt_gates

    return prompt_gates(recipe, plan, pick_device(device), progress).numpy()


def degenerate(plan: Plan, folder: Path) -> Iterator[Problem]:
    """Pairs of experts that the routers in a folder can hardly tell apart, with the layers where that is so."""
    found, gates = _computed(folder), []
    for layer in range(plan.layers):
        tensor = found[LAYER.format(layer=layer) + plan.family.router]
        gates.append(decode(read_tensor(folder, tensor), tensor.dtype).reshape(tensor.shape))
    rows = np.stack(gates)  # [L, E, H]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)
    parallel = rows @ rows.swapaxes(1, 2) > PARALLEL  # [L, E, E]
    for a in range(plan.experts):
        for b in range(a + 1, plan.experts):
            layers = np.flatnonzero(parallel[:, a, b]).tolist()
            if layers:
                yield Problem(
                    f"experts {a + 1} and {b + 1}",
                    f"in {spell_layers(layers, plan.layers)} the router can hardly tell "
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
