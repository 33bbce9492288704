"""Adapters are somebody else's input: whatever is odd in one is told in one line, quickly, by `check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import limited
from safetensors.torch import load_file, save_file
from small_models import Make, recipe

from lazymoe import LazyMoEError, check, merge

DOWN = "base_model.model.model.layers.0.mlp.down_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def models(make: Make, tmp_path: Path) -> tuple[Path, Path]:
    """A base model, and a sound adapter on it."""
    base, adapter = make("base"), tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"{DOWN}.lora_A.weight": torch.ones(2, 48), f"{DOWN}.lora_B.weight": torch.ones(32, 2)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    return base, adapter


def problems(base: Path, adapter: Path) -> list[str]:
    return [str(p) for p in check(recipe(base, f"{base}+{adapter}", base)).errors]


def test_the_sound_one_is_taken(models: tuple[Path, Path]) -> None:
    assert problems(*models) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": "four"}, {"lora_alpha": [4]}, {"lora_alpha": True}, {"lora_alpha": 1e999},
        {"lora_alpha": {"a": 1}}, {"alpha_pattern": {"down_proj": "x"}}, {"alpha_pattern": {"down_proj": None, "x": 1}},
        {"alpha_pattern": ["down_proj"]}, {"alpha_pattern": "down_proj"}, {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"(.*)*down_proj": 1}}, {"alpha_pattern": {"((a+)+)+$": 1}},
        {"alpha_pattern": {".*.*.*.*.*x": 1}}, {"alpha_pattern": {"a" * 1000 + "+": 1}},
        {"peft_type": "LOHA"}, {"peft_type": None}, {"peft_type": ["LORA"]}, {"use_dora": True},
        {"lora_bias": True},
    ],
    ids=str,
)  # fmt: skip
def test_an_odd_config_is_told(fields: dict[str, Any], models: tuple[Path, Path]) -> None:
    file = models[1] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with limited(60):
        [told] = problems(*models)
    assert "adapter" in told and "\n" not in told


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"LORA"', "[" * 100_000])
def test_a_config_that_is_none_is_told(text: str, models: tuple[Path, Path]) -> None:
    (models[1] / "adapter_config.json").write_text(text)
    [told] = problems(*models)
    assert "adapter" in told and "\n" not in told


CHANGES: dict[str, Callable[[Tensors], object]] = {
    "only one factor": lambda t: t.pop(f"{DOWN}.lora_B.weight"),
    "only the other": lambda t: t.pop(f"{DOWN}.lora_A.weight"),
    "rank 0": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(0, 48),
                                  f"{DOWN}.lora_B.weight": torch.ones(32, 0)}),
    "two ranks": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(3, 48)}),
    "a vector": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(48)}),
    "a cube": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(2, 4, 12)}),
    "another width": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(2, 47)}),
    "integers": lambda t: t.update({f"{DOWN}.lora_A.weight": torch.ones(2, 48, dtype=torch.int32)}),
    "a module that isn't there": lambda t: t.update({"base_model.model.nowhere.lora_A.weight": torch.ones(2, 4),
                                                     "base_model.model.nowhere.lora_B.weight": torch.ones(4, 2)}),
    "something else": lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.ones(4)}),
    "a whole matrix of another shape": lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(3, 32)}),
    "a whole matrix of integers": lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(64, 32).int()}),
    "an embedding's factor beside a matrix's": lambda t: t.update({f"{DOWN}.lora_embedding_A": torch.ones(2, 48)}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_odd_factors_are_told(change: Callable[[Tensors], object], models: tuple[Path, Path]) -> None:
    file = models[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    [told] = problems(*models)
    assert "adapter" in told and "\n" not in told


def test_what_is_not_a_number_names_the_adapter(models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = models
    save_file({f"{DOWN}.lora_A.weight": torch.full((2, 48), float("nan")), f"{DOWN}.lora_B.weight": torch.ones(32, 2)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(LazyMoEError, match=rf"\+{adapter}: 'model\.layers\.0\.mlp\.down_proj\.weight' has weights"):
        merge(recipe(base, f"{base}+{adapter}", base), tmp_path / "moe")


def test_a_head_of_its_own_on_a_tied_model_is_kept(make: Make, models: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = make("tied", tie_word_embeddings=True), models[1]
    save_file({"base_model.model.lm_head.weight": torch.randn(64, 32)}, adapter / "adapter_model.safetensors")
    merge(recipe(f"{base}+{adapter}", base, base), tmp_path / "moe")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
