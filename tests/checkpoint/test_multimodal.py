"""The text model of multimodal checkpoints: on text it is the whole, as transformers' own class of that says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from crossing import crossed
from generic_models import FAMILIES
from safetensors.torch import load_file, save_file
from small_models import KINDS, SHAPE, load_model, logits, recipe, tensors_of
from stored_models import renamed

from lazymoe import check, merge
from lazymoe.checkpoint.opening import open_folder

_SEEN = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "image_size": 8, "patch_size": 4}  # fmt: skip
_QWEN = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 32, "patch_size": 4}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
WRAPPERS: dict[str, tuple[str, dict, dict, str]] = {  # its class, its text and vision configs, and what it becomes
    "Gemma 3": ("Gemma3ForConditionalGeneration", FAMILIES["Gemma 3"][1], _SEEN, "generic_moe"),
    "Mistral Small 3": (
        "Mistral3ForConditionalGeneration", {"model_type": "mistral", "head_dim": 8, "sliding_window": None}, _SEEN,
        "mixtral",
    ),
    "Ministral 3": (
        "Mistral3ForConditionalGeneration", {"model_type": "ministral3", "head_dim": 8}, _SEEN, "generic_moe",
    ),
    "Gemma 4": ("Gemma4ForConditionalGeneration", KINDS["gemma4_text"][1], _SEEN, "gemma4_text"),
    "LLaVA": ("LlavaForConditionalGeneration", {"model_type": "llama"}, _SEEN, "mixtral"),
    "Qwen 2.5 VL": ("Qwen2_5_VLForConditionalGeneration", {"rope_parameters": _MROPE}, _QWEN, "qwen2_moe"),
    "Qwen 3 VL": (
        "Qwen3VLForConditionalGeneration", {"rope_parameters": _MROPE, "head_dim": 8},
        _QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 4}, "qwen3_moe",
    ),
    "Qwen 3.5": (
        "Qwen3_5ForConditionalGeneration",
        FAMILIES["Qwen 3.5"][1] | {"rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}},
        _QWEN | {"num_position_embeddings": 4}, "qwen3_5_moe_text",
    ),
}  # fmt: skip


def wrapper(folder: Path, name: str, seed: int = 0) -> tuple[Path, torch.Tensor]:
    """A small multimodal model, and what it makes of `IDS`."""
    kind, text, vision, _ = WRAPPERS[name]
    made = getattr(transformers, kind)
    config = made.config_class(text_config={**SHAPE, **text}, vision_config=vision, tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made(config).eval()
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape) * 0.2
    model.save_pretrained(folder)
    return folder, logits(model)


def earlier(name: str) -> str | None:
    """What transformers 4 called it."""
    return (
        name.replace("model.language_model.", "language_model.model.")
        .replace("model.vision_tower.", "vision_tower.")
        .replace("model.multi_modal_projector.", "multi_modal_projector.")
        if name.startswith("model.")
        else f"language_model.{name}"
    )


@pytest.mark.parametrize(("name", "names"), crossed(WRAPPERS, [None, earlier]))
def test_the_text_model_of_a_wrapper_is_the_whole_on_text(
    name: str, names: Callable[[str], str | None] | None, tmp_path: Path
) -> None:
    base, expected = wrapper(tmp_path / "base", name)
    if names:
        renamed(base, names)
    made = merge(recipe(base, base, base, base), tmp_path / "moe")
    assert made.plan.host.name == WRAPPERS[name][3]
    assert (logits(load_model(tmp_path / "moe")) - expected).abs().max() < 1e-4
    [remark] = [str(w) for w in made.warnings if "only its text model is taken" in str(w)]
    assert "stay behind" in remark


def test_a_text_fine_tune_is_an_expert_of_a_multimodal_base(tmp_path: Path) -> None:
    base, _ = wrapper(tmp_path / "base", "Mistral Small 3")
    config = json.loads((base / "config.json").read_text())["text_config"]
    text = transformers.MistralForCausalLM(transformers.MistralConfig.from_dict(config))
    text.save_pretrained(tmp_path / "text")
    assert not check(recipe(base, base, tmp_path / "text")).errors
    assert not check(recipe(tmp_path / "text", base, tmp_path / "text")).errors


@pytest.mark.parametrize("names", [None, earlier], ids=["as transformers 5 names them", "as 4 did"])
def test_an_adapter_that_was_trained_on_the_whole_is_taken(
    names: Callable[[str], str | None] | None, tmp_path: Path
) -> None:
    base, _ = wrapper(tmp_path / "base", "Gemma 3")
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(base)
    targets = r".*language_model.*\.(q_proj|up_proj|down_proj)"
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    if names:
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        before = "base_model.model."
        save_file({before + str(names(n.removeprefix(before))): t for n, t in load_file(file).items()}, file)
    merge(recipe(base, f"{base}+{tmp_path / 'adapter'}", base), tmp_path / "ours")
    merge(recipe(base, tmp_path / "merged", base), tmp_path / "theirs")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    assert all(torch.allclose(ours[name], tensor, atol=1e-5) for name, tensor in theirs.items())
    adapted, plain = (ours[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] for expert in (0, 1))
    assert not torch.equal(adapted, plain)


@pytest.mark.parametrize("names", [None, earlier], ids=["as transformers 5 names them", "as 4 did"])
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("Gemma 3", {"target_modules": ["q_proj", "up_proj"]}),  # in the vision tower too
        ("Gemma 3", {"target_modules": r".*language_model.*up_proj", "modules_to_save": ["multi_modal_projector"]}),
        ("Qwen 2.5 VL", {"target_modules": ["up_proj"]}),
    ],
    ids=["attention", "a module saved whole", "visual"],
)
def test_an_adapter_that_changes_what_is_for_pictures_is_told_so(
    name: str, changed: dict[str, Any], names: Callable[[str], str | None] | None, tmp_path: Path
) -> None:
    """And merged, as the message says, it can be used: as of any other, what is for pictures stays behind."""
    base, _ = wrapper(tmp_path / "base", name)
    model = getattr(transformers, WRAPPERS[name][0]).from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **changed))
    model.save_pretrained(tmp_path / "adapter")
    if names:
        renamed(base, names)
    [problem] = check(recipe(base, f"{base}+{tmp_path / 'adapter'}", base)).errors
    assert problem.code == "source.adapter" and problem.where.startswith("experts[0].source_model")
    assert "too, which is for pictures or sound and isn't taken" in problem.what
    assert "merge_and_unload() and name the result" in problem.remedy
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert not check(recipe(base, tmp_path / "merged", base)).errors


def test_what_text_models_are_of_no_known_kind_is_told(tmp_path: Path) -> None:
    base, _ = wrapper(tmp_path / "base", "LLaVA")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["model_type"] = "nothing-known"
    (base / "config.json").write_text(json.dumps(config))
    [problem] = check(recipe(base, base, base)).errors
    assert "llava" in problem.what and len(str(problem).splitlines()) == 1


def test_tied_embeddings_are_the_head(tmp_path: Path) -> None:
    base, _ = wrapper(tmp_path / "base", "LLaVA")
    renamed(base, lambda name: None if "lm_head" in name else name)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert open_folder(base).config["tie_word_embeddings"] and not check(recipe(base, base, base)).errors
