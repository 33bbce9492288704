"""Routers are fitted on the generic host as on any other: tiny models of three families, trained on the spot as the
demo's are, on the texts of its domains."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from generic_models import FAMILIES
from transformers import AutoModelForCausalLM

from lazymoe import Recipe, merge, report
from lazymoe.demonstration import models as demo

SHAPE = {
    "vocab_size": 512, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 1, "initializer_range": 0.05, "tie_word_embeddings": False,
}  # fmt: skip


def trained(folder: Path, family: str) -> None:
    """A base model, and an expert for each of the demo's domains, by their names."""
    kind, needed = FAMILIES[family]
    domains = demo.domains()
    tokenizer = demo.train_tokenizer([domain.train for domain in domains])
    texts = [torch.tensor(tokenizer.encode(domain.train, add_special_tokens=False).ids) for domain in domains]
    config = getattr(transformers, f"{kind}Config")(**{**needed, **SHAPE})

    def save(model: torch.nn.Module, name: str) -> None:
        model.save_pretrained(folder / name)
        tokenizer.save(str(folder / name / "tokenizer.json"))
        (folder / name / "tokenizer_config.json").write_text(json.dumps(demo.TOKENIZER))

    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_config(config)
        list(demo.train(base, texts, demo.BASE_STEPS, demo.BASE_RATE))
        save(base, "base")
        for domain, text in zip(domains, texts, strict=True):
            expert = copy.deepcopy(base)
            list(demo.train(expert, [text], demo.EXPERT_STEPS, demo.EXPERT_RATE))
            save(expert, domain.name)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Gemma 3", "GLM-4 0414", "Nemotron"])
def test_tokens_go_to_the_right_expert(family: str, tmp_path: Path) -> None:
    trained(tmp_path, family)
    domains = demo.domains()
    experts = [
        {
            "source_model": str(tmp_path / d.name),
            "positive_prompts": [d.train[i : i + 300] for i in range(0, 6000, 300)],
        }
        for d in domains
    ]
    recipe = Recipe.model_validate({"base_model": str(tmp_path / "base"), "experts": experts, "gate_mode": "fit"})
    merged = merge(recipe, tmp_path / "moe")
    assert merged.plan.host.name == "generic_moe" and merged.plan.shared == "regmean"
    found = report(tmp_path / "moe", [[domain.held] for domain in domains])
    assert found.mean_accuracy > 0.8
    assert sum(found.losses["mixture"]) < sum(found.losses["average"]) < sum(found.losses["base"])
