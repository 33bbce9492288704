"""Which models fit together: what is doubtful is named, with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import Make, configure, recipe, rewrite, warnings

from lazymoe import Recipe, check
from lazymoe.checkpoint.opening import open_folder
from lazymoe.planning.compatibility import unusable

DOWN = "model.layers.0.mlp.down_proj.{}"


@pytest.mark.parametrize("spelling", [{"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}])
def test_another_rope_theta_in_either_spelling(pair: tuple[Path, Path], spelling: dict) -> None:
    configure(pair[1], rope_parameters=None)
    configure(pair[1], **spelling)
    assert (
        "rotary settings {'rope_type': 'default', 'rope_theta': 500000.0}" in warnings(check(recipe(pair[0], *pair)))[0]
    )


def test_the_same_rope_in_different_spellings_is_the_same(pair: tuple[Path, Path]) -> None:
    configure(pair[1], rope_parameters=None)
    configure(pair[1], rope_theta=10000.0)
    assert warnings(check(recipe(pair[0], *pair))) == []


def test_all_misfits_are_told_at_once(make: Make, pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], make("wide", intermediate_size=96), make("deep", num_hidden_layers=3)))
    assert ["expert 1 of 2" in str(found.errors[0]), "expert 2 of 2" in str(found.errors[1])] == [True, True]
    assert found.plan is None


def test_a_quantized_model_is_no_use_and_its_maker_is_named(pair: tuple[Path, Path]) -> None:
    assert unusable("base_model", open_folder(pair[0])) is None
    (pair[0] / "README.md").write_text("---\nbase_model: acme/whole\n---\n")
    packed = torch.zeros(4, 4, dtype=torch.int32)
    rewrite(pair[0], lambda t: t.update({DOWN.format("qweight"): packed}))
    configure(pair[0], quantization_config={"quant_method": "awq"})
    problem = unusable("base_model", open_folder(pair[0]))
    assert problem is not None and problem.code == "source.quantized"
    assert "(awq)" in problem.what and problem.remedy.endswith("acme/whole.")


def test_what_the_mixture_has_no_place_for(pair: tuple[Path, Path]) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    rewrite(pair[0], lambda t: t.update({"model.layers.0.self_attn.new.weight": t[norm].clone()}))
    [problem] = check(recipe(pair[0], *pair)).errors
    assert problem.code == "source.no-place" and "self_attn.new.weight" in problem.what
    assert warnings(check(recipe(pair[1], *pair))) == []  # an expert's attention isn't taken


def test_experts_that_number_tokens_otherwise_cannot_be_corrected(pair: tuple[Path, Path]) -> None:
    for folder, tokens in zip(pair, ({"a": 0, "b": 1}, {"a": 1, "b": 0}), strict=True):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    experts = [{"source_model": str(model), "positive_prompts": ["a"]} for model in pair]
    fields = {"base_model": str(pair[0]), "gate_mode": "random", "experts": experts, "expert_weights": "corrected"}
    [problem] = check(Recipe.model_validate(fields)).errors
    assert problem.code == "recipe.corrected" and problem.where.startswith("experts[1].source_model")
    assert "numbers tokens otherwise" in problem.what


def test_an_expert_that_lacks_what_its_own_pass_needs_cannot_be_corrected(pair: tuple[Path, Path]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(pair[1], lambda tensors: tensors.pop(name))
    experts = [{"source_model": str(model), "positive_prompts": ["a"]} for model in pair]
    fields = {"base_model": str(pair[0]), "gate_mode": "random", "experts": experts}
    assert not check(Recipe.model_validate(fields)).errors
    [problem] = check(Recipe.model_validate({**fields, "expert_weights": "corrected"})).errors
    assert problem.code == "source.incomplete" and name in problem.what
