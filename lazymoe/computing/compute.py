"""Whatever the plan calls computed, by the method that the recipe names, into files that a killed merge finds again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lazymoe.architectures.records import LAYER
from lazymoe.checkpoint.safetensors import open_file, write_header
from lazymoe.checkpoint.tensors import CODES, TensorInfo
from lazymoe.computing import ROUTERS, SHARED, corrected_files, shared_files
from lazymoe.errors import Problem, error
from lazymoe.files import is_sound, read_bytes, write_sealed
from lazymoe.floats import decode, encode
from lazymoe.forward.device import pick_device
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe
from lazymoe.seeding import generator
from lazymoe.units import spell_layers

PARALLEL = 0.95  # cosine above which two rows send nearly the same tokens to both experts


def compute(
    prepared: Prepared, plan: Plan, folder: Path, seed: int, device: str | None, progress: Progress
) -> dict[tuple[int, str], TensorInfo]:
    """Work out all that the plan calls computed, shared weights, routers and corrected experts, into files of a folder.

    What an earlier call has finished there is kept.

    Args:
        prepared, plan: what is wanted; the sources must be on the disk.
        folder: where the files go.
        seed: of the random modes.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the layers done, stages ``route`` and ``sweep``.

    Returns:
        Each tensor by the number of its source and its name.

    Raises:
        SourceError: if a model's tokenizer can't be loaded, or its states or weights are NaN or infinite.
        LazyMoEError: if there is no such device.
    """
    recipe, fitted = prepared.prompts, prepared.prompts.gate_mode == "fit"
    if not fitted and not is_sound(folder / ROUTERS):
        _write_routers(plan, folder, _gates(recipe, plan, seed, device, progress))
    merged = shared_files(plan.layers) if plan.shared != "base" else []
    merged += [file for files in corrected_files(plan.corrected, plan.layers) for file in files]
    if not all(is_sound(folder / name) for name in (*merged, *([ROUTERS] if fitted else []))):
        from lazymoe.computing.sweep import discard_states, sweep

        gates = sweep(recipe, plan, folder, pick_device(device), progress)
        if gates is not None:
            _write_routers(plan, folder, gates.numpy())
        discard_states(folder)
    return _computed(folder)


def _write_routers(plan: Plan, folder: Path, gates: np.ndarray) -> None:
    """Write the rows of each layer ``[L, gates, H]``, float32, in the output's dtype and by the output's names.

    Raises:
        SourceError: if one of them is NaN or infinite.
    """
    if not np.isfinite(gates).all():
        what = "the routers came out as NaN"
        raise error("source.broken", "gate_mode", what, "The base model may be broken: try it by itself.")
    rows = {}
    for layer, gate in enumerate(gates):
        prefix = LAYER.format(layer=layer)
        rows[prefix + plan.host.router] = gate[: plan.experts]
        if plan.gates > plan.experts:
            rows[f"{prefix}{plan.host.shared_gate}"] = gate[plan.experts :]
    dtype = CODES[plan.config["dtype"]]
    header = write_header((name, dtype, gate.shape) for name, gate in rows.items())
    write_sealed(folder / ROUTERS, (header, *(encode(gate, dtype).tobytes() for gate in rows.values())))


def _computed(folder: Path) -> dict[tuple[int, str], TensorInfo]:
    """List what a folder holds of computed tensors, by the number of their source and their name."""
    files = [(0, file) for file in (*folder.glob(SHARED.format("*")), folder / ROUTERS) if file.exists()]
    files += [(int(file.name.split("-")[1]), file) for file in folder.glob("corrected-*.safetensors")]
    return {(source, name): tensor for source, file in files for name, tensor in open_file(file).items()}


def _gates(recipe: Recipe, plan: Plan, seed: int, device: str | None, progress: Progress) -> np.ndarray:
    """Compute the rows of each layer ``[L, gates, H]``, float32, that aren't fitted; see `Plan.gates`."""
    if recipe.gate_mode in ("random", "uniform_random"):
        from lazymoe.computing.router_random import random_gates

        shape = (plan.layers, plan.gates, plan.hidden_size)
        return random_gates(recipe.gate_mode, shape, plan.host.scores, generator(seed, "router"))
    from lazymoe.computing.router_prompts import prompt_gates

    return prompt_gates(recipe, plan, pick_device(device), progress).numpy()


def degenerate(plan: Plan, folder: Path) -> Iterator[Problem]:
    """Yield the pairs of experts that the routers in a folder can hardly tell apart, with the layers where that is so.

    Args:
        plan: what is wanted.
        folder: where `compute` has put its files.
    """
    found, gates = _computed(folder), []
    for layer in range(plan.layers):
        tensor = found[0, LAYER.format(layer=layer) + plan.host.router]
        lies = tensor.span()
        assert lies is not None  # written by `compute`
        gates.append(decode(read_bytes(*lies), tensor.dtype).reshape(tensor.shape))
    rows = np.stack(gates)  # [L, E, H]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)
    parallel = rows @ rows.swapaxes(1, 2) > PARALLEL  # [L, E, E]
    for a in range(plan.experts):
        for b in range(a + 1, plan.experts):
            layers = np.flatnonzero(parallel[:, a, b]).tolist()
            if layers:
                what = (
                    f"in {spell_layers(layers, plan.layers)} the router can hardly tell them apart, "
                    "so both get nearly the same tokens"
                )
                remedy = "Give them prompts that differ more: whole questions of the kind each should answer."
                yield Problem("output.alike", f"experts {a + 1} and {b + 1}", what, remedy)
