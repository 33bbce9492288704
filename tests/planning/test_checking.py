"""Checks: what is doubtful is named, with its place; what is fine passes without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_models import Make, configure, recipe

from lazymoe import Recipe, check
from lazymoe.planning.checking import Check


def tokenizer(folder: Path, *tokens: str, added: tuple[str, ...] = (), template: str = "") -> None:
    """A tokenizer.json with these tokens, in this order."""
    vocab = {token: i for i, token in enumerate(tokens)}
    extra = [{"id": len(vocab) + i, "content": token} for i, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": extra}))
    if template:
        (folder / "chat_template.jinja").write_text(template)


@pytest.fixture
def pair(make: Make) -> tuple[Path, Path]:
    return make("base", seed=1), make("expert", seed=2)


def warnings(found: Check) -> list[str]:
    assert not found.errors
    return [str(w) for w in found.warnings]


def test_a_good_recipe_passes_in_silence(pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], *pair))
    assert warnings(found) == []
    assert str(found).endswith("This can be merged.")
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == found.plan.parameters


def test_tokens_that_the_base_lacks(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", "b")
    tokenizer(pair[1], "a", "b", added=("<|im_start|>", "<|im_end|>"))
    (warning,) = warnings(check(recipe(pair[0], *pair)))
    assert "experts[1].source_model (expert 2 of 2)" in warning
    assert "2 tokens that the base model lacks (<|im_end|>, <|im_start|>)" in warning


def test_a_vocabulary_in_another_order(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", "b")
    tokenizer(pair[1], "b", "a")
    assert "numbers some tokens otherwise" in warnings(check(recipe(pair[0], *pair)))[0]


def test_a_larger_vocabulary(make: Make, pair: tuple[Path, Path]) -> None:
    (warning,) = warnings(check(recipe(pair[0], pair[1], make("large", vocab_size=70))))
    assert "a vocabulary of 70, the base model of 64" in warning


def test_another_chat_template(pair: tuple[Path, Path]) -> None:
    tokenizer(pair[0], "a", template="{{ messages }}")
    tokenizer(pair[1], "a", template="{{ other }}")
    assert "another chat template" in warnings(check(recipe(pair[0], *pair)))[0]


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


def test_the_same_model_twice(pair: tuple[Path, Path]) -> None:
    (warning,) = warnings(check(recipe(pair[0], pair[1], pair[1])))
    assert "expert 2 of 2" in warning
    assert "same model as expert 1" in warning


def test_the_same_prompts_twice(pair: tuple[Path, Path]) -> None:
    experts = [{"source_model": str(p), "positive_prompts": ["hello"]} for p in pair]
    given = Recipe.model_validate({"base_model": str(pair[0]), "gate_mode": "cheap_embed", "experts": experts})
    (warning,) = warnings(check(given))
    assert "experts[1].positive_prompts" in warning
    assert "those of expert 1" in warning


def test_more_experts_per_token_than_experts(pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], *pair, experts_per_token=5))
    assert "5 is more than the number of experts, 2" in warnings(found)[0]
    assert found.plan.config["num_experts_per_tok"] == 2


def test_all_misfits_are_told_at_once(make: Make, pair: tuple[Path, Path]) -> None:
    found = check(recipe(pair[0], make("wide", intermediate_size=96), make("deep", num_hidden_layers=3)))
    assert ["expert 1 of 2" in str(found.errors[0]), "expert 2 of 2" in str(found.errors[1])] == [True, True]
    assert found.plan is None


def test_download_volume_and_nothing_downloaded(pair: tuple[Path, Path], hub) -> None:
    for name, folder in zip(("acme/a", "acme/b"), pair, strict=True):
        hub.add(name, folder)
    found = check(recipe("acme/a", "acme/a", "acme/b"))
    assert found.download == sum((p / "model.safetensors").stat().st_size for p in pair)
    assert warnings(found) == []
