"""Hosts at a real width, where sums are long: identical experts give the dense model's logits, whatever the router."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_models import Make, recipe, rewrite
from transformers import AutoModelForCausalLM

from lazymoe import merge
from lazymoe.architectures.records import Host
from lazymoe.architectures.registry import HOSTS

WIDE = {"hidden_size": 2048, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip
MODES = ("random", "uniform_random", "hidden", "cheap_embed", "fit")


def furthest(host: Host, mode: str, make: Make, demo_models: Path, folder: Path) -> float:
    """How far the logits of a mixture of equal experts are from the dense model's, in their standard deviation."""
    kind = host.takes[0].model_type
    own = {
        "cohere2": {"num_hidden_layers": 4},
        "ernie4_5": {"num_attention_heads": 8},  # whose head_dim is set
        "gemma4_text": {"num_hidden_layers": 4},
        "lfm2": {"num_attention_heads": 32},
    }.get(kind, {})
    base = make("base", kind=kind, dtype="float32", std=0.02, **{**WIDE, **own})

    def train(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "norm" in name and name.endswith(".weight"):
                tensor.fill_(1)  # about what it is in trained models

    rewrite(base, train)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_models / "base" / name, base / name)
    silent: dict[str, object] = {"source_model": str(base), "residual_scale": 0.0}
    if host.shared_gate and "random" not in mode:
        silent["positive_prompts"] = ["whatever it is"]
    shared = {"shared_experts": [silent]} if host.shared_gate else {}
    given = recipe(base, base, base, base, gate_mode=mode, architecture=host.name, **shared)
    prompts = (["def f(x): return x"], ["A statement may be followed"], ["LOAD_FAST self"])
    experts = [e.model_copy(update={"positive_prompts": p}) for e, p in zip(given.experts, prompts, strict=True)]
    merge(given.with_experts([*experts, *(given.shared_experts or [])]), folder / "moe")
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        dense, mixture = (
            AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32, trust_remote_code=True).eval()(ids).logits
            for f in (base, folder / "moe")
        )
    return float((dense - mixture).abs().max() / dense.std())


@pytest.mark.parametrize("mode", ["random", "uniform_random"])
@pytest.mark.parametrize("host", [h for h in HOSTS if h.scores == "sigmoid"], ids=lambda host: host.name)
def test_sigmoids_do_not_vanish(host: Host, mode: str, make: Make, demo_models: Path, tmp_path: Path) -> None:
    assert furthest(host, mode, make, demo_models, tmp_path) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_every_router_on_every_host(host: Host, mode: str, make: Make, demo_models: Path, tmp_path: Path) -> None:
    assert furthest(host, mode, make, demo_models, tmp_path) < 1e-3
