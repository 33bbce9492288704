"""Recipes: mergekit-moe's files load unchanged, and go back to YAML with nothing lost."""

from __future__ import annotations

import pytest

from lazymoe import Recipe

BEYONDER = """
base_model: mlabonne/AlphaMonarch-7B
experts:
  - source_model: mlabonne/AlphaMonarch-7B
    positive_prompts:
    - "chat"
    - "assistant"
  - source_model: beowolx/CodeNinja-1.0-OpenChat-7B
    positive_prompts:
    - "code"
    - "python"
"""
MINI_MIXTRAL = """
base_model: unsloth/mistral-7b-v0.2
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: unsloth/mistral-7b-v0.2
    positive_prompts:
      - "Use common sense and logical reasoning skills."
    negative_prompts:
      - "nonsense"
  - source_model: mistralai/Mistral-7B-Instruct-v0.2
    positive_prompts:
      - "Calculate the answer to this math problem"
    negative_prompts:
      - "incorrect"
"""
UPCYCLING = """
base_model: BEE-spoke-data/smol_llama-220M-GQA
gate_mode: random
dtype: bfloat16
experts:
  - source_model: BEE-spoke-data/smol_llama-220M-GQA
  - source_model: BEE-spoke-data/smol_llama-220M-GQA
# and then train the sucker!
"""
CLOWN_CAR = r"""
base_model: NousResearch/Hermes-2-Pro-Mistral-7B
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: NousResearch/Hermes-2-Pro-Mistral-7B
    positive_prompts:
      - "<|im_start|>user\nHello, who are you?<|im_end|>"
  - source_model: VAGOsolutions/SauerkrautLM-7b-HerO
    positive_prompts:
      - "Das ist ein Satz auf Deutsch."
"""
SHARED = """
base_model: path/to/self_attn_donor
architecture: qwen
gate_mode: hidden # one of "hidden", "cheap_embed", or "random"
dtype: bfloat16 # output dtype (float32, float16, or bfloat16)
experts_per_token: 3
experts:
- source_model: expert_model_1@main
  positive_prompts: ["This is a prompt"]
  noise_scale: 0.01
  residual_scale: 0.5
shared_experts:
- source_model: model_name+an/adapter
  positive_prompts: # required by Qwen MoE for "hidden" gate mode, otherwise not allowed
    - "blah blah"
  residual_scale: 0.1
"""


@pytest.mark.parametrize("text", [BEYONDER, MINI_MIXTRAL, UPCYCLING, CLOWN_CAR, SHARED])
def test_mergekit_files_load_and_go_back_to_yaml(text: str) -> None:
    import yaml

    recipe = Recipe.from_yaml(text)
    assert yaml.safe_load(recipe.to_yaml()) == yaml.safe_load(text)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_defaults() -> None:
    recipe = Recipe.from_yaml(BEYONDER)
    assert (recipe.gate_mode, recipe.shared_weights, recipe.experts_per_token, recipe.dtype) == ("fit", None, 2, None)
    assert recipe.expert_weights == "own"


def test_text_with_unusual_letters_survives() -> None:
    prompts = ["emoji 🧩: colon", "# not a comment", "line\nbreak", " spaces ", "'quotes\"", "yes", "1.0", "ñ"]
    recipe = Recipe.from_yaml(UPCYCLING)
    recipe = recipe.model_copy(update={"experts": [recipe.experts[0].model_copy(update={"positive_prompts": prompts})]})
    assert Recipe.from_yaml(recipe.to_yaml()).experts[0].positive_prompts == prompts


def test_experts_are_named_by_their_adapters() -> None:
    names = ["org/base@main+org/one@abc", "org/base+org/two", "org/three@v1", "other/three"]
    given = Recipe.model_validate({"base_model": "org/base", "experts": [{"source_model": name} for name in names]})
    assert given.names == ["one", "two", "three (3)", "three (4)"]
