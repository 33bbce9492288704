"""Weights that all experts share: the mean where that is asked for, and never further from the experts than need be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from small_models import Make, recipe, tensors_of

from lazymoe import Recipe, merge
from lazymoe.computing.shared_weights import _moments


def test_moments_are_regular_whatever_comes_in() -> None:
    for gram in (torch.zeros(8, 8), torch.ones(8, 8), 1e12 * torch.ones(8, 8)):
        for read in (None, torch.zeros(8, 8), 3 * torch.ones(8, 8)):
            assert torch.linalg.eigvalsh(_moments(gram, read)).min() > 0.09


@pytest.mark.parametrize("shared", ["average", "regmean"])
def test_shared_weights_of_equal_experts_are_theirs(shared: str, demo_models: Path, tmp_path: Path) -> None:
    expert = demo_models / "english"
    experts = [{"source_model": str(expert), "positive_prompts": [word]} for word in ("one", "two")]
    recipe = {"base_model": str(demo_models / "base"), "gate_mode": "fit", "shared_weights": shared, "experts": experts}
    merge(Recipe.model_validate(recipe), tmp_path / "moe", device="cpu")
    own = tensors_of(expert)
    for name, tensor in tensors_of(tmp_path / "moe").items():
        if name in own and (shared == "average" or own[name].dim() == 1 or "layers" in name):
            assert torch.allclose(tensor, own[name], atol=1e-4), name


def test_the_average_is_the_mean(make: Make, tmp_path: Path) -> None:
    models = [make(f"m{i}", seed=i, dtype="float32") for i in range(3)]
    experts = [{"source_model": str(m)} for m in models[1:]]
    recipe = {"base_model": str(models[0]), "gate_mode": "random", "shared_weights": "average", "experts": experts}
    merge(Recipe.model_validate(recipe), tmp_path / "moe")
    found, (a, b) = tensors_of(tmp_path / "moe"), map(tensors_of, models[1:])
    for name in a:
        if "mlp" not in name:
            assert torch.allclose(found[name], (a[name] + b[name]) / 2, atol=1e-6), name


def test_experts_with_other_tokens_leave_the_body_to_the_base(make: Make, tmp_path: Path) -> None:
    models = [make(f"m{i}", seed=i) for i in range(3)]
    for folder, vocab in zip(models, ({"a": 0, "b": 1}, {"a": 0, "b": 1}, {"b": 0, "a": 1}), strict=True):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    experts = [{"source_model": str(m)} for m in models[1:]]
    recipe = {"base_model": str(models[0]), "gate_mode": "random", "shared_weights": "average", "experts": experts}
    merged = merge(Recipe.model_validate(recipe), tmp_path / "moe")
    assert any("taken from the base model alone" in str(w) for w in merged.warnings)
    norm = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(tensors_of(tmp_path / "moe")[norm], tensors_of(models[0])[norm])


@pytest.mark.parametrize(
    ("family", "name"),
    [("AFM", "model.layers.0.self_attn.q_proj.weight"), ("GPT-2", "transformer.h.0.attn.c_attn.weight")],
)
def test_regmean_without_prompts_goes_by_what_fine_tuning_changed(family: str, name: str, tmp_path: Path) -> None:
    """Its matrices answer each expert's changed directions as that expert does, better than their mean; GPT-2's, which
    lie as [in, out], too."""
    base, *experts = (make_family(tmp_path, family, name=f"m{i}", seed=i) for i in range(3))
    own, deltas = tensors_of(base), []
    for expert, side in zip(experts, (slice(0, 16), slice(16, 32)), strict=True):
        tuned = tensors_of(expert)[name] - own[name]
        (tuned if family == "GPT-2" else tuned.T)[side] = 0  # each was trained on inputs of one half
        deltas.append(tuned)
        (expert / "model.safetensors").unlink()
        from safetensors.torch import save_file

        save_file(own | {name: own[name] + tuned}, expert / "model.safetensors", metadata={"format": "pt"})
    for shared in ("average", "regmean"):
        merge(recipe(base, *experts, shared_weights=shared), tmp_path / shared)
    average, regmean = (tensors_of(tmp_path / s)[name] - own[name] for s in ("average", "regmean"))
    assert torch.allclose(average, sum(deltas) / 2, atol=1e-5)
    turned = [(d, average, regmean) if family != "GPT-2" else (d.T, average.T, regmean.T) for d in deltas]
    for delta, average, regmean in turned:
        x = delta.T  # what it reads, as far as its change tells
        error = [((merged - delta) @ x).norm() / (delta @ x).norm() for merged in (average, regmean)]
        assert error[1] < 0.6 * error[0]
