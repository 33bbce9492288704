"""Shards whose parts come in any order, from memory or from where they lie: the bytes are those of a file that is
written from its beginning to its end, and what is noted of them is believed after another look."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from small_models import Make, contents, recipe

from lazymoe import SourceError, merge
from lazymoe.checkpoint.safetensors import open_file
from lazymoe.output.shards import NOTES, shards_of
from lazymoe.output.writer import Writer
from lazymoe.planning.plan import Piece, Plan
from lazymoe.planning.prepared import prepare
from lazymoe.progress import silent

SMALL = {"shard_size": 30_000}


@pytest.fixture
def plan(make: Make, tmp_path: Path) -> Plan:
    """Phi-3's gate and up matrices lie in one tensor; one expert is scaled, another noised, the dtypes are three."""
    models = [make(f"m{i}", seed=i, kind="phi3", dtype=d) for i, d in enumerate(("bfloat16", "float32", "float16"))]
    given = recipe(*models[:1], *models, shared_weights="base")
    changes: list[dict[str, object]] = [{"residual_scale": 0.5}, {"noise_scale": 0.1}, {}]
    experts = [e.model_copy(update=change) for e, change in zip(given.experts, changes, strict=True)]
    asked = given.with_experts(experts)
    merge(asked, tmp_path / "whole", seed=3, **SMALL)
    return prepare(asked, **SMALL).sound_plan


def taken(plan: Plan) -> list[tuple[int, str]]:
    """The tensors that are taken from, in an order of their own."""
    pieces = (part for output in plan.outputs for part in output.parts if isinstance(part, Piece))
    names = sorted({(piece.source, piece.tensor.name) for piece in pieces})
    random.Random(0).shuffle(names)
    return names


def blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Its elements, in blocks of unequal length."""
    flat, at = tensor.reshape(-1), 0
    for length in (7, 100, len(flat)):
        yield flat[at : at + length]
        at += length


def opened(plan: Plan, folder: Path) -> Writer:
    """Shards of which nothing is given yet, and what they take of routers."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    shards = Writer(shards_of(plan, out, out, 3), silent)
    shards.computed = {
        name: info for file in whole(folder) for name, info in open_file(folder / "whole" / file).items()
    }
    return shards


def whole(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder / "whole").items() if name.endswith(".safetensors")}


def written(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder / "out").items() if name.endswith(".safetensors")}


def test_the_order_does_not_matter(plan: Plan, tmp_path: Path) -> None:
    with closing(opened(plan, tmp_path)) as shards:
        for source, name in taken(plan):
            assert not shards.has(source, name)
            shards.pass_by(source, name, blocks(plan.sources[source].load(name)))
            assert shards.has(source, name)
        shards.finish()
        assert shards.whole
    assert len(whole(tmp_path)) > 2 and written(tmp_path) == whole(tmp_path)
    assert not list((tmp_path / "out").glob(f"*{NOTES}"))


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_noted_is_believed_after_another_look(kept: bool, plan: Plan, tmp_path: Path) -> None:
    names = taken(plan)
    half = len(names) // 2
    with closing(opened(plan, tmp_path)) as shards:
        for i, (source, name) in enumerate(names):
            shards.pass_by(source, name, [plan.sources[source].load(name)])
            if kept and i == half:
                shards.keep()
    with closing(opened(plan, tmp_path)) as shards:
        assert [shards.has(*name) for name in names] == [kept and i <= half for i in range(len(names))]
    for file in (tmp_path / "out").glob("model-*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1  # of the last part, if that is there
        file.write_bytes(data)
    with closing(opened(plan, tmp_path)) as shards:
        assert kept <= any(not shards.has(*name) for name in names[: half + 1])
        shards.finish()
    assert written(tmp_path) == whole(tmp_path)


@pytest.mark.parametrize("source", [1, 2, 3])
def test_no_nan_is_taken(source: int, plan: Plan, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = plan.sources[source].load(name).clone()
    tensor[3, 5] = float("nan")
    with (
        closing(opened(plan, tmp_path)) as shards,
        pytest.raises(SourceError, match=f"'{name}' has weights that are NaN"),
    ):
        shards.pass_by(source, name, [tensor])
