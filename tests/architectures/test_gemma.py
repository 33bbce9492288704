"""Gemma 4: layers of two shapes, copied norms, and what of it can't be made a mixture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import IDS, Make, configure, load_model, logits, recipe, rewrite, tensors_of

from lazymoe import check, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.losses import mixture_losses

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 2e4},
}
VARIANTS = {
    "keys are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "keys are values, as many heads": {"attention_k_eq_v": True},
    "rotary settings of its own": {"rope_parameters": ROPE},
    "for images": {"use_bidirectional_attention": "vision"},
    "no cap": {"final_logit_softcapping": None},
    "window by window": {"layer_types": ["sliding_attention", "full_attention"] * 2},
}


@pytest.mark.parametrize("spelling", ["per layer", "global"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_its_variants_are_exact(variant: str, spelling: str, make: Make, tmp_path: Path) -> None:
    fields = VARIANTS[variant]
    base = make("base", kind="gemma4_text", dtype="float32", **fields)
    if spelling == "global":  # as older versions write it
        heads = fields.get("num_global_key_value_heads")
        configure(base, per_layer_config=None, global_head_dim=16, num_global_key_value_heads=heads)
    merge(recipe(base, base, base), tmp_path / "moe")
    whole, dense = load_model(tmp_path / "moe"), load_model(base)
    assert (logits(whole) - logits(dense)).abs().max() < 1e-4
    for ours, theirs in zip(whole.config.per_layer_config, dense.config.per_layer_config, strict=True):
        assert (ours.head_dim, ours.num_key_value_heads) == (theirs.head_dim, theirs.num_key_value_heads)
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    older = written["global_head_dim"], written["num_global_key_value_heads"]
    last = dense.config.per_layer_config[3]
    assert older == (last.head_dim, last.num_key_value_heads)


def test_its_real_epsilon_is_exact_with_norms_as_trained(make: Make, tmp_path: Path) -> None:
    """The other tests' norms are about zero, and so little comes out of their feed-forward networks that it counts."""
    base = make("base", kind="gemma4_text", dtype="float32", rms_norm_eps=1e-6)
    rewrite(base, lambda tensors: [t.add_(1) for name, t in tensors.items() if "norm" in name])
    merge(recipe(base, base, base), tmp_path / "moe")
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4


def test_a_config_may_leave_out_what_transformers_assumes(make: Make, tmp_path: Path) -> None:
    base = make("base", kind="gemma4_text", dtype="float32", head_dim=256, global_head_dim=512, num_key_value_heads=4)
    left_out = ("layer_types", "rope_parameters", "per_layer_config", "head_dim", "num_key_value_heads",
                "hidden_activation", "attention_k_eq_v", "enable_moe_block", "num_kv_shared_layers")  # fmt: skip
    configure(base, **dict.fromkeys(left_out))
    merge(recipe(base, base, base), tmp_path / "moe")
    assert (logits(load_model(tmp_path / "moe")) - logits(load_model(base))).abs().max() < 1e-4


@pytest.mark.parametrize("shared", ["base", "average", "regmean"])
def test_the_router_and_the_experts_read_what_the_dense_network_reads(shared: str, make: Make, tmp_path: Path) -> None:
    models = [make(f"model-{i}", seed=i, kind="gemma4_text", dtype="float32", attention_k_eq_v=True) for i in range(3)]
    plan = merge(recipe(*models, shared_weights=shared), tmp_path / "moe").plan
    mixture, seen = load_model(tmp_path / "moe"), {}
    for i, layer in enumerate(mixture.model.layers):
        for name in ("mlp", "router.proj", "experts"):
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, args, key=(i, name): seen.__setitem__(key, args[0].reshape(-1, 32))
            )
    expected = torch.nn.functional.cross_entropy(logits(mixture)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    for i in range(4):
        for name in ("router.proj", "experts"):
            assert (seen[i, name] - seen[i, "mlp"]).abs().max() < 1e-5
    written = tensors_of(tmp_path / "moe")
    norm = "model.layers.0.pre_feedforward_layernorm.weight"
    assert torch.equal(written[norm], tensors_of(models[0])[norm]) == (shared == "base")

    batches = [(IDS, torch.ones_like(IDS, dtype=torch.bool))]
    [loss], *_ = mixture_losses(plan, open_folder(tmp_path / "moe"), batches, "cpu")
    assert loss == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hidden_size_per_layer_input": 8}, "embeddings for each layer"),
        ({"num_kv_shared_layers": 1}, "share keys and values"),
        ({"num_kv_shared_layers": 1, "use_double_wide_mlp": True}, "share keys and values"),
        ({"enable_moe_block": True, "num_experts": 2}, "a mixture of experts already"),
        ({"use_bidirectional_attention": "all"}, "looks both ways"),
        ({"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}}, "by their type of attention only"),
        ({"per_layer_config": {"3": {"intermediate_size": 16}}}, "by their type of attention only"),
    ],
)
def test_what_does_not_fit_is_told_why(fields: dict, why: str, make: Make) -> None:
    base = configure(make("base", kind="gemma4_text"), **fields)
    [problem] = check(recipe(base, base, base, architecture="gemma4")).errors
    assert why in str(problem)


def test_the_heads_of_full_attention_must_be_the_base_models(make: Make) -> None:
    base, other = (make(name, kind="gemma4_text", global_head_dim=dim) for name, dim in (("base", 16), ("other", 32)))
    [problem] = check(recipe(base, base, other)).errors
    assert "head_dim of full attention 32 instead of 16" in str(problem)
