"""Families are exact: transformers' own class gives the dense model's logits, with nothing missing or made up.

With ``--transformers4 PATH`` the same checkpoints are also loaded by that Python's transformers.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import KINDS, Make, configure, recipe, tensors_of
from transformers import AutoModelForCausalLM

from lazymoe import LazyMoEError, merge
from lazymoe.families import FAMILIES, find
from lazymoe.families.types import LAYER, rope_spellings

IDS = torch.arange(2, 62).reshape(2, 30)
CONFIGS = {
    "grouped attention": {},
    "full attention": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "head_dim of its own": {"head_dim": 16},
    "other theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "scaled rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama 3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "sliding window": {"sliding_window": 7},
}
PAIRS = [(family.name, dense.model_type) for family in FAMILIES for dense in family.takes]
LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
assert not any(info.values()), info
torch.save(model(torch.arange(2, 62).reshape(2, 30)).logits.detach(), sys.argv[2])
"""


def load(folder: Path) -> torch.nn.Module:
    """Load strictly: nothing missing, unexpected or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_every_pair_has_a_small_model_to_test_it_with() -> None:
    assert {kind for _, kind in PAIRS} == KINDS.keys()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_equal_experts_give_the_dense_models_logits(
    family: str, kind: str, config: str, make: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if config == "sliding window" and kind != "mistral":
        pytest.skip("it has none")
    base = make("base", kind=kind, dtype="float32", **CONFIGS[config])
    merge(recipe(base, base, base, base, architecture=family), tmp_path / "moe")
    expected = logits(load(base))
    assert (logits(load(tmp_path / "moe")) - expected).abs().max() < 1e-4

    beyond = family == "qwen2_moe" and config == "head_dim of its own"  # which transformers 4 doesn't read there
    if (python := request.config.getoption("transformers4")) and not beyond:
        subprocess.run([python, "-c", LOGITS, tmp_path / "moe", tmp_path / "logits"], check=True)
        assert (torch.load(tmp_path / "logits") - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_a_forced_router_gives_that_experts_feed_forward_in_the_bases_body(
    family: str, kind: str, make: Make, tmp_path: Path
) -> None:
    base, *experts = (make(f"model-{i}", seed=i, kind=kind, dtype="float32") for i in range(4))
    merge(recipe(base, *experts, architecture=family, experts_per_token=1), tmp_path / "moe")
    mixture, dense = load(tmp_path / "moe"), load(base)
    for i, layer in enumerate(mixture.model.layers):
        # every token looks the same to the router, so all go to the expert whose row has the largest sum
        layer.mlp.gate.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]),))
        gate = LAYER.format(layer=i) + find(kind, family)[1].router
        chosen = int(tensors_of(tmp_path / "moe")[gate].sum(1).argmax())
        dense.model.layers[i].mlp = load(experts[chosen]).model.layers[i].mlp
    assert (logits(mixture) - logits(dense)).abs().max() < 1e-4


def test_configs_are_carried_exactly(make: Make, tmp_path: Path) -> None:
    base = configure(make("base", kind="mistral"), eos_token_id=[2, 7], attention_dropout=0.1, sliding_window=5)
    merge(recipe(base, base, base), tmp_path / "moe")
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    for key in ("eos_token_id", "attention_dropout", "sliding_window", "rms_norm_eps", "max_position_embeddings"):
        assert written[key] == json.loads((base / "config.json").read_text())[key]
    assert load(tmp_path / "moe").config.num_local_experts == 2


def test_what_mistral_leaves_out_is_what_transformers_assumes(make: Make, tmp_path: Path) -> None:
    base = make("base", kind="mistral", num_key_value_heads=8, num_attention_heads=8)
    config = json.loads((base / "config.json").read_text())
    left_out = ("sliding_window", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "hidden_act", "head_dim")
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in left_out}))
    merge(recipe(base, base, base), tmp_path / "moe")
    assert (logits(load(tmp_path / "moe")) - logits(load(base))).abs().max() < 1e-4
    assert load(tmp_path / "moe").config.sliding_window == 4096


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 1e4}, (1e4, None, {"rope_type": "default", "rope_theta": 1e4})),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
         (5e5, None, {"rope_type": "default", "rope_theta": 5e5})),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
         (1e4, {"type": "linear", "factor": 2.0, "rope_type": "linear"},
          {"type": "linear", "factor": 2.0, "rope_type": "linear", "rope_theta": 1e4})),
    ],
)  # fmt: skip
def test_rope_in_both_spellings(config: dict, expected: tuple) -> None:
    found = rope_spellings(config)
    assert (found["rope_theta"], found["rope_scaling"], found["rope_parameters"]) == expected


def test_what_fits_nowhere_is_told_what_would() -> None:
    with pytest.raises(LazyMoEError, match=r"'gemma2'.*mixtral takes llama, mistral"):
        find("gemma2")
