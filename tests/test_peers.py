"""Against mergekit-moe itself, where ``--mergekit PATH`` names one: the same tensors to the bit, the same routers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from conftest import tensors_of, write_recipe

from lazymoe import Recipe, merge
from lazymoe.demo_models import domains


@pytest.mark.parametrize("fields", [{}, {"residual_scale": 0.3}], ids=["plain", "scaled"])
@pytest.mark.parametrize("gate_mode", ["hidden", "cheap_embed"])
def test_every_tensor_is_mergekits(
    gate_mode: str, fields: dict, demo_models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    mergekit = request.config.getoption("mergekit")
    if not mergekit:
        pytest.skip("no --mergekit")
    experts = [
        {"source_model": str(demo_models / k.name), "positive_prompts": list(k.prompts), **fields} for k in domains()
    ]
    data = {"base_model": str(demo_models / "base"), "gate_mode": gate_mode, "dtype": "bfloat16", "experts": experts}
    given = Recipe.model_validate(data)
    file = write_recipe(tmp_path / "recipe.yaml", given)
    subprocess.run([mergekit, file, tmp_path / "theirs"], check=True, capture_output=True)
    merge(given, tmp_path / "ours", device="cpu")

    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for name, tensor in theirs.items():
        layer = name.partition("mlp.")[0] + "block_sparse_moe."
        if name.endswith("mlp.gate.weight"):
            rows = ours.pop(layer + "gate.weight")
            assert torch.cosine_similarity(rows.float(), tensor.float(), dim=-1).min() > 0.999
        elif name.endswith("experts.gate_up_proj"):  # [E, 2I, H], fused
            for e, fused in enumerate(tensor):
                pair = [ours.pop(f"{layer}experts.{e}.{w}.weight") for w in ("w1", "w3")]
                assert torch.equal(torch.cat(pair), fused)
        elif name.endswith("experts.down_proj"):  # [E, H, I]
            for e, matrix in enumerate(tensor):
                assert torch.equal(ours.pop(f"{layer}experts.{e}.w2.weight"), matrix)
        else:
            assert torch.equal(ours.pop(name), tensor)
    assert not ours
