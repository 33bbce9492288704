"""Shards: bytes as planned, whatever way they take."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from small_models import Make, contents, recipe, rewrite, tensors_of

from lazymoe import Recipe, merge
from lazymoe.seeding import generator

EXPERT = "model.layers.1.block_sparse_moe.experts.1.{}.weight"
DENSE = "model.layers.1.mlp.{}.weight"


def pair(make: Make, **config: object) -> tuple[Path, Path]:
    return make("base", seed=1, **config), make("expert", seed=2, **config)


def scaled(base: Path, expert: Path, dtype: str = "bfloat16", **fields: object) -> Recipe:
    experts = [{"source_model": str(base)}, {"source_model": str(expert), **fields}]
    return Recipe.model_validate({"base_model": str(base), "gate_mode": "random", "dtype": dtype, "experts": experts})


def test_every_tensor_is_where_it_belongs(make: Make, tmp_path: Path) -> None:
    base, expert = pair(make)
    merge(recipe(base, base, expert), tmp_path / "moe")
    found, ours, theirs = (tensors_of(f) for f in (tmp_path / "moe", base, expert))
    for w, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        assert torch.equal(found.pop(EXPERT.format(w)), theirs[DENSE.format(name)])
    for name, tensor in found.items():
        if "block_sparse_moe" not in name:
            assert torch.equal(tensor, ours[name])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_casts_are_torchs(make: Make, tmp_path: Path, source: str, dtype: str) -> None:
    base, expert = pair(make, dtype=source)
    merge(scaled(base, expert, dtype), tmp_path / "moe")
    expected = tensors_of(expert)[DENSE.format("up_proj")].to(getattr(torch, dtype))
    assert torch.equal(tensors_of(tmp_path / "moe")[EXPERT.format("w3")], expected)


def test_scale_is_on_the_experts_output_only(make: Make, tmp_path: Path) -> None:
    base, expert = pair(make)
    merge(scaled(base, expert, residual_scale=0.3), tmp_path / "moe")
    found, theirs = tensors_of(tmp_path / "moe"), tensors_of(expert)
    assert torch.equal(found[EXPERT.format("w2")], theirs[DENSE.format("down_proj")] * 0.3)
    assert torch.equal(found[EXPERT.format("w1")], theirs[DENSE.format("gate_proj")])


def test_noise_has_its_scale_and_depends_on_the_seed(make: Make, tmp_path: Path) -> None:
    base, expert = pair(make, intermediate_size=4096, dtype="float32")
    given = scaled(base, expert, "float32", noise_scale=0.25)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        merge(given, tmp_path / name, seed=seed)
    noise = tensors_of(tmp_path / "a")[EXPERT.format("w1")] - tensors_of(expert)[DENSE.format("gate_proj")]
    assert noise.std() == pytest.approx(0.25, rel=0.02)
    assert noise.mean().abs() < 0.01
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_random_numbers_are_the_same_everywhere() -> None:
    # numpy promises Philox's stream for good; other numbers here would mean other models for the same recipe
    assert generator(0, "router").integers(0, 2**32, 3).tolist() == [2876021883, 2961055286, 2241658066]
    assert generator(0, "other").integers(0, 2**32, 3).tolist() != generator(1, "other").integers(0, 2**32, 3).tolist()


@pytest.mark.parametrize("failure", ["absent", errno.EXDEV, errno.ENOSYS, "nothing copied"])
def test_without_copying_in_the_kernel_the_bytes_are_the_same(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: object
) -> None:
    given = recipe(*pair(make), make("third", seed=3))
    merge(given, tmp_path / "kernel")

    def copy_file_range(*_: object) -> int:
        if isinstance(failure, int):
            raise OSError(failure, os.strerror(failure))
        return 0

    if failure == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    merge(given, tmp_path / "plain")
    assert contents(tmp_path / "plain") == contents(tmp_path / "kernel")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_no_nan_or_infinity_gets_through(make: Make, tmp_path: Path, dtype: str, value: float) -> None:
    base, expert = pair(make, dtype=dtype if dtype != "float64" else "float32")
    name = DENSE.format("up_proj")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(getattr(torch, dtype))
        tensors[name][-1, -1] = value

    rewrite(expert, spoil)
    with pytest.raises(Exception, match=f"'{name}' has weights that are NaN or infinite"):
        merge(recipe(base, base, expert), tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_largest_finite_weights_get_through(make: Make, tmp_path: Path, dtype: str) -> None:
    base, expert = pair(make, dtype=dtype)
    largest = torch.finfo(getattr(torch, dtype)).max
    name = DENSE.format("up_proj")
    rewrite(expert, lambda t: t[name].view(-1)[:2].copy_(torch.tensor([largest, -largest])))
    merge(recipe(base, base, expert), tmp_path / "moe")
    assert torch.equal(tensors_of(tmp_path / "moe")[EXPERT.format("w3")], tensors_of(expert)[name])
