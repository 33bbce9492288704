"""Whatever the plan calls computed, by the method that the recipe names, into what a killed merge finds again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymoe.checkpoint.safetensors import open_file, write_header
from lazymoe.checkpoint.tensors import CODES
from lazymoe.computing import ROUTERS, ROUTING, broken
from lazymoe.errors import Problem
from lazymoe.files import is_sound, write_sealed
from lazymoe.floats import encode
from lazymoe.forward.device import pick_device
from lazymoe.output.writer import Sink
from lazymoe.planning.memory import sweeps, tells_routing
from lazymoe.planning.plan import Plan
from lazymoe.planning.prepared import Prepared
from lazymoe.progress import Progress
from lazymoe.recipe.schema import Recipe
from lazymoe.seeding import generator
from lazymoe.units import spell_layers

if TYPE_CHECKING:
    from lazymoe.computing.places import Places
    from lazymoe.forward.inputs import Inputs

PARALLEL = 0.95  # cosine above which two rows send nearly the same tokens to both experts


def compute(
    prepared: Prepared,
    plan: Plan,
    writer: Sink[Any],
    folder: Path,
    seed: int,
    device: str | None,
    progress: Progress,
    weigh: Callable[[Inputs], None] | None = None,
    places: Places | None = None,
) -> None:
    """Work out all that the plan calls computed: shared weights and corrected experts to where tensors go, and routers,
    into a file too.

    What an earlier call has done is kept.

    Args:
        prepared, plan: what is wanted; the sources must be on the disk, or be read from the Hub.
        writer: where tensors go.
        folder: for what is half-made; there is `ROUTING` in the end, where the tokens of each expert's prompts went, if
            they went through the mixture.
        seed: of the random modes.
        device: where to compute; a CUDA device if there is one by default.
        progress: told of the layers done, stages ``route`` and ``sweep``.
        weigh, places: as `sweep` has them.

    Raises:
        SourceError: if a model's tokenizer can't be loaded, or its states or weights are NaN or infinite.
        LazyMoEError: if there is no such device.
    """
    recipe, fitted = prepared.prompts, prepared.prompts.gate_mode == "fit"
    if not fitted:
        if not is_sound(folder / ROUTERS):
            _write_routers(plan, folder, _gates(recipe, plan, seed, device, progress))
        writer.computed = open_file(folder / ROUTERS)
    swept = [ROUTERS, *([ROUTING] if tells_routing(recipe, plan) else [])]
    if sweeps(recipe, plan) and not (writer.whole and all(is_sound(folder / name) for name in swept)):
        from lazymoe.computing.sweep import sweep

        gates, routing = sweep(recipe, plan, writer, folder, pick_device(device), progress, weigh, places)
        if gates is not None:
            _write_routers(plan, folder, gates.numpy())
        if routing is not None:
            write_sealed(folder / ROUTING, [json.dumps(routing._asdict()).encode()])


def _write_routers(plan: Plan, folder: Path, gates: np.ndarray) -> None:
    """Write the rows of each layer ``[L, gates, H]``, float32, in the output's dtype and by the output's names.

    Raises:
        SourceError: if one of them is NaN or infinite.
    """
    if not np.isfinite(gates).all():
        raise broken()
    rows = {}
    for layer, gate in enumerate(gates):
        prefix = plan.dense.within(layer)
        rows[prefix + plan.host.router] = gate[: plan.experts]
        if plan.gates > plan.experts:
            rows[f"{prefix}{plan.host.shared_gate}"] = gate[plan.experts :]
    dtype = CODES[plan.config["dtype"]]
    header = write_header((name, dtype, gate.shape) for name, gate in rows.items())
    write_sealed(folder / ROUTERS, (header, *(encode(gate, dtype).tobytes() for gate in rows.values())))


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
    found, gates = open_file(folder / ROUTERS), []
    for layer in range(plan.layers):
        tensor = found[plan.dense.within(layer) + plan.host.router]
        gates.append(tensor.floats().reshape(tensor.shape))
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
