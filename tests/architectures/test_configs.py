"""One completed config counts: defaults, nulls, old and new spellings, and what the tensors say against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generic_models import make_family
from small_models import Make, apart, configure, recipe, rewrite, tensors_of
from transformers import AutoModelForCausalLM

from lazymoe import check, merge
from lazymoe.checkpoint.opening import open_folder

LONG = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}


def state(folder: Path, **fields: object) -> Path:
    """Write fields into a config.json, nulls too, after taking out all that says the same."""
    config = json.loads((folder / "config.json").read_text())
    same = {"rope_scaling": ["rope_parameters"], "torch_dtype": ["dtype"]}
    for key in [other for field in fields for other in same.get(field, [])]:
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 16}),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 16, **LONG},
                   "original_max_position_embeddings": 16}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
        ("phi3", {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 16,
                  "sliding_window": 262144}),
        ("llama", {"rope_scaling": None, "head_dim": None, "pretraining_tp": 1}),
        ("llama", {"rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}),
        ("qwen2", {"sliding_window": None, "max_window_layers": None, "layer_types": None}),
    ],
)  # fmt: skip
def test_every_spelling_means_what_transformers_takes_it_for(
    kind: str, fields: dict[str, object], make: Make, tmp_path: Path, transformers_4: str | None
) -> None:
    base = state(make("base", kind=kind, hidden_size=32, max_position_embeddings=64), rope_theta=10000.0, **fields)
    if kind == "qwen2":
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "max_window_layers"}))
    merge(recipe(base, base, base), tmp_path / "moe")
    assert apart(base, tmp_path / "moe") < 1e-4
    if transformers_4:
        assert apart(base, tmp_path / "moe", transformers_4) < 1e-4


def test_the_first_name_of_longrope_means_the_same(make: Make, tmp_path: Path) -> None:
    """transformers 5 itself can't read that name any more."""
    for name, kind in (("new", "longrope"), ("old", "su")):
        stretched = {"rope_scaling": {"type": kind, **LONG}, "original_max_position_embeddings": 16}
        base = state(make(name, kind="phi3", max_position_embeddings=64), rope_theta=10000.0, **stretched)
        merge(recipe(base, base, base), tmp_path / f"{name}-moe")
    assert apart(tmp_path / "new", tmp_path / "old-moe") < 1e-4


@pytest.mark.parametrize("stated", ["bfloat16", "torch.bfloat16", None, "float8", 7])
def test_the_dtype_is_the_configs_else_that_of_most_weights(stated: object, make: Make, tmp_path: Path) -> None:
    base = state(make("base"), dtype=stated)
    rewrite(base, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].float()}))
    merge(recipe(base, base, base), tmp_path / "moe")
    assert {t.dtype for t in tensors_of(tmp_path / "moe").values()} == {torch.bfloat16}


def test_a_leftover_of_quantization_is_ignored_with_a_warning(make: Make, tmp_path: Path) -> None:
    base = state(make("base"), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    found = check(recipe(base, base, base))
    assert not found.errors
    assert ["no weight is" in w.what for w in found.warnings if w.code == "source.remark"] == [True]
    merge(recipe(base, base, base), tmp_path / "moe")
    assert "quantization_config" not in json.loads((tmp_path / "moe" / "config.json").read_text())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "cohere2", "lfm2", "granite", "ernie4_5"])
def test_a_tied_head_that_differs_is_kept_and_one_that_does_not_is_not(kind: str, make: Make, tmp_path: Path) -> None:
    same, other = (make(name, kind=kind, tie_word_embeddings=True) for name in ("same", "other"))
    rewrite(same, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    rewrite(other, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].flip(0)}))
    for base, kept in ((same, False), (other, True)):
        merge(recipe(base, base, base), tmp_path / f"moe-{kept}")
        assert ("lm_head.weight" in tensors_of(tmp_path / f"moe-{kept}")) is kept
        assert apart(base, tmp_path / f"moe-{kept}") < 1e-4
    assert check(recipe(other, other, other)).warnings[-1].code == "source.remark"


@pytest.mark.parametrize("shared_weights", ["base", "average"])
@pytest.mark.parametrize("base_tied", [True, False])
@pytest.mark.parametrize("expert_tied", [True, False])
def test_tied_and_untied_models_mix(
    expert_tied: bool, base_tied: bool, shared_weights: str, make: Make, tmp_path: Path
) -> None:
    base = make("base", seed=1, dtype="float32", tie_word_embeddings=base_tied)
    experts = [make(f"e{i}", seed=2 + i, dtype="float32", tie_word_embeddings=expert_tied) for i in range(2)]
    found = check(recipe(base, *experts, shared_weights=shared_weights))
    assert not found.errors
    assert any(w.code == "source.head" for w in found.warnings) is (base_tied and not expert_tied)
    merge(recipe(base, *experts, shared_weights=shared_weights), tmp_path / "moe")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    read = [AutoModelForCausalLM.from_pretrained(m) for m in (base, *experts)]
    embeddings, heads = (
        [m.get_input_embeddings().weight for m in read],
        [m.get_output_embeddings().weight for m in read],
    )
    expected = embeddings[0] if shared_weights == "base" else torch.stack(embeddings[1:]).mean(0)
    assert torch.allclose(model.get_input_embeddings().weight, expected, atol=1e-6)
    if not base_tied:
        expected = heads[0] if shared_weights == "base" else torch.stack(heads[1:]).mean(0)
        assert torch.allclose(model.get_output_embeddings().weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu instead of silu"),
        ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps 0.001 instead of 1e-06"),
        ("mistral", {"sliding_window": 7}, "an attention window of 7 tokens instead of no attention window"),
        ("granite", {"residual_multiplier": 0.1}, "residual_multiplier 0.1 instead of 0.7"),
        ("cohere2", {"logit_scale": 2.0}, "logit_scale 2.0 instead of 1.5"),
        ("phi", {"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001 instead of 1e-05"),
    ],
)
def test_what_an_expert_computes_otherwise_is_said(kind: str, fields: dict[str, object], said: str, make: Make) -> None:
    base, expert = make("base", kind=kind), configure(make("expert", seed=1, kind=kind), **fields)
    warned = [w.what for w in check(recipe(base, base, expert)).warnings if w.code == "source.otherwise"]
    assert len(warned) == 1 and said in warned[0]
    assert not [w for w in check(recipe(base, base, base)).warnings if w.code == "source.otherwise"]


@pytest.mark.parametrize("name", ["mlp.gate_proj.bias", "mlp.act_fn.beta", "mlp.extra_proj.weight"])
def test_an_experts_tensor_without_a_place_is_named(name: str, make: Make) -> None:
    base, expert = make("base"), make("expert", seed=1)
    rewrite(expert, lambda t: t.update({f"model.layers.1.{name}": torch.ones(4).bfloat16()}))
    [problem] = check(recipe(base, base, expert)).errors
    assert problem.code == "source.no-place" and name in problem.what and "expert 2 of 2" in problem.where


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": None}, "no usable hidden_size (None)"),
        ({"num_hidden_layers": 10_000_000}, "no usable num_hidden_layers (10000000)"),
        ({"num_attention_heads": -4}, "no usable num_attention_heads (-4)"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) for its other sizes"),
        ({"rms_norm_eps": "small"}, "no usable rms_norm_eps ('small')"),
        ({"rope_scaling": "linear"}, "no usable rope_scaling ('linear')"),
        ({"rope_scaling": {"type": "linear", "factor": {"deep": 1}}}, "no usable rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "no usable rope_parameters"),
        ({"partial_rotary_factor": ""}, "no usable partial_rotary_factor ('')"),
        ({"rope_theta": [1e4]}, "no usable rope_theta ([10000.0])"),
        ({"tie_word_embeddings": "yes"}, "no usable tie_word_embeddings ('yes')"),
        ({"hidden_act": ["silu"]}, "no usable hidden_act (['silu'])"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(fields: dict[str, object], said: str, make: Make) -> None:
    base = state(make("base"), **fields)
    [problem] = check(recipe(base, base, base)).errors
    assert problem.code == "source.config" and said in problem.what


def test_granite_4_dense_is_not_taken_for_a_mixture(tmp_path: Path) -> None:
    base = make_family(tmp_path, "Granite 4")
    assert not check(recipe(base, base, base)).errors
    sparse = make_family(tmp_path, "Granite 4", name="sparse", num_local_experts=8)
    [problem] = check(recipe(sparse, sparse, sparse)).errors
    assert "this model is a mixture of experts already" in problem.what


def test_the_streamed_pass_says_what_transformers_cannot_make(make: Make, demo_models: Path, tmp_path: Path) -> None:
    base = configure(make("base", vocab_size=512), hidden_act="no such activation")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((demo_models / "base" / name).read_bytes())
    given = recipe(base, base, base, gate_mode="hidden")
    given = given.with_experts([e.model_copy(update={"positive_prompts": [f"a {i}"]}) for i, e in
                                enumerate(given.experts)])  # fmt: skip
    from lazymoe import LazyMoEError

    with pytest.raises(LazyMoEError, match=r"can't make a llama of its config\.json"):
        merge(given, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
    assert open_folder(base).config["hidden_act"] == "no such activation"
