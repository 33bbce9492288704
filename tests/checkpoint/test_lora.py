"""LoRA adapters: written as PEFT itself would merge them, and told apart from what can't be added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from crossing import crossed
from generic_models import make_family
from hub_server import Hub
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from small_models import Make, recipe, tensors_of
from transformers import AutoModelForCausalLM

from lazymoe import LazyMoEError, check, merge
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.recipe.reference import Reference

MLP = ["gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "small rank": {"r": 2, "target_modules": MLP},
    "large rank": {"r": 24, "lora_alpha": 48, "target_modules": MLP},
    "attention too": {"r": 4, "target_modules": [*MLP, "q_proj", "k_proj", "v_proj", "o_proj"]},
    "some of the matrices": {"r": 4, "target_modules": ["down_proj"]},
    "rank-stabilised": {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": MLP},
    "rank pattern": {"r": 4, "rank_pattern": {"layers.1.mlp.up_proj": 8}, "target_modules": MLP},
    "alpha pattern": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"down_proj": 32}, "target_modules": MLP},
    "one layer": {"r": 4, "target_modules": MLP, "layers_to_transform": [1]},
    "embeddings": {"r": 4, "target_modules": [*MLP, "embed_tokens"]},
    "modules to save": {"r": 4, "target_modules": MLP, "modules_to_save": ["lm_head"]},
    "a regular expression": {"r": 4, "target_modules": r".*\.mlp\.(up|down)_proj"},
}


def adapt(base: Path, out: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """An adapter of random weights, and beside it the same merged by PEFT, ``out-merged``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=dtype), peft.LoraConfig(task_type="CAUSAL_LM", **config)
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data = torch.randn(parameter.shape, dtype=dtype) * 0.1
    model.save_pretrained(out)
    merged = model.merge_and_unload()
    merged.save_pretrained(out.with_name(f"{out.name}-merged"))
    return out


def opened(name: str) -> Source:
    return open_source(Reference.parse(name), "base_model")


@pytest.mark.parametrize(("shape", "dtype"), crossed(SHAPES, ["float32", "bfloat16"]))
def test_base_and_adapter_are_what_peft_merges(shape: str, dtype: str, make: Make, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    adapter = adapt(base, tmp_path / "adapter", **SHAPES[shape])
    merge(recipe(base, f"{base}+{adapter}", base, dtype=dtype), tmp_path / "ours")
    merge(recipe(base, f"{adapter}-merged", base, dtype=dtype), tmp_path / "theirs")
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for name, tensor in theirs.items():
        close = 1e-6 if dtype == "float32" else 2**-8
        assert torch.allclose(ours[name].float(), tensor.float(), rtol=close, atol=1e-6), name
    source, merged = opened(f"{base}+{adapter}"), opened(f"{adapter}-merged")
    for name in merged.tensors:
        assert torch.allclose(source.load(name), merged.load(name), atol=1e-6), name
    touched = [n for n in merged.tensors if not torch.equal(merged.load(n), open_folder(base).load(n))]
    assert source.adapter is not None
    assert touched and set(touched) == source.adapter.tensors.keys()


@pytest.mark.parametrize(
    ("family", "modules"),
    [("GPT-2", ["c_attn", "c_proj", "c_fc"]), ("Gemma 3", MLP), ("Qwen 3.5", [*MLP, "in_proj_qkv", "q_proj"])],
)
def test_adapters_on_what_has_no_record_are_what_peft_merges(family: str, modules: list[str], tmp_path: Path) -> None:
    """GPT-2's weights lie as [in, out]: PEFT sees that for itself, whatever the config says."""
    base = make_family(tmp_path, family)
    adapter = adapt(base, tmp_path / "adapter", r=4, target_modules=modules)
    for shared in ("base", "regmean"):
        fields = {"shared_weights": shared, "architecture": "generic"}
        merge(recipe(base, f"{base}+{adapter}", base, **fields), tmp_path / f"ours-{shared}")
        merge(recipe(base, f"{adapter}-merged", base, **fields), tmp_path / f"theirs-{shared}")
        ours, theirs = (tensors_of(tmp_path / f"{whose}-{shared}") for whose in ("ours", "theirs"))
        assert all(torch.allclose(ours[name], tensor, atol=1e-5) for name, tensor in theirs.items())


def test_an_adapter_is_read_block_by_block(make: Make, tmp_path: Path) -> None:
    """Any range of elements, as the writer asks for them."""
    base = make("base", dtype="float32")
    source = opened(f"{base}+{adapt(base, tmp_path / 'adapter', **SHAPES['embeddings'])}")
    for name in ("model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"):
        tensor = source.tensors[name]
        whole = tensor.read()
        for start, stop in ((0, 1), (5, 6), (31, 97), (47, 48), (tensor.elements - 1, tensor.elements)):
            assert torch.allclose(tensor.read(start, stop), whole[start:stop], atol=1e-6)


def test_adapters_from_the_hub_are_pinned(make: Make, hub: Hub, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    adapter = adapt(base, tmp_path / "adapter", **SHAPES["small rank"])
    hub.add("acme/lora-base", base)
    commit = hub.add("acme/lora", adapter)
    given = recipe("acme/lora-base", "acme/lora-base+acme/lora", f"{base}+{adapter}")
    merged = merge(given, tmp_path / "moe")
    tensors = tensors_of(tmp_path / "moe")
    assert torch.equal(*(tensors[f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight"] for e in (0, 1)))
    assert f"+acme/lora@{commit}" in (merged.folder / "recipe.yaml").read_text()


def test_with_shared_weights_the_adapters_attention_counts(make: Make, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    adapter = adapt(base, tmp_path / "adapter", **SHAPES["attention too"])
    for name, model in (("ours", f"{base}+{adapter}"), ("theirs", f"{adapter}-merged")):
        merge(recipe(base, model, model, shared_weights="average"), tmp_path / name)
    ours, theirs = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name


def warned(base: Path, adapter: Path, **fields: Any) -> str:
    return " ".join(str(w) for w in check(recipe(base, f"{base}+{adapter}", base, **fields)).warnings)


def test_what_does_not_reach_the_mixture_is_told(make: Make, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    adapter = adapt(base, tmp_path / "adapter", **SHAPES["attention too"])
    words = "its adapter also changes k_proj, o_proj, q_proj, v_proj, which the mixture takes from the base model"
    assert words in warned(base, adapter)
    assert "its adapter" not in warned(base, adapter, shared_weights="average")
    attention = adapt(base, tmp_path / "attention", r=4, target_modules=["q_proj"])
    assert "changes no feed-forward weights" in warned(base, attention)


def refused(base: Path, adapter: Path) -> str:
    found = check(recipe(base, f"{base}+{adapter}", base))
    assert len(found.errors) == 1
    return str(found.errors[0])


def test_what_is_not_plain_lora_is_refused(make: Make, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    dora = adapt(base, tmp_path / "dora", r=4, target_modules=MLP, use_dora=True)
    assert "DoRA" in refused(base, dora) and "merge_and_unload" in refused(base, dora)

    plain = adapt(base, tmp_path / "plain", r=4, target_modules=MLP)
    other = make("other", dtype="float32", intermediate_size=64)
    assert "changes 'model.layers.0.mlp" in refused(other, plain) and "It was made for" in refused(other, plain)

    file = plain / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.layers.0.mlp.lora_magnitude": torch.ones(1)}, file)
    assert "isn't plain LoRA" in refused(base, plain)
    config = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "of the kind IA3, not LoRA" in refused(base, plain)
    file.write_bytes(b"nonsense")
    assert "can't be read" in refused(base, plain)
    file.unlink()
    assert "has no adapter_model.safetensors" in refused(base, plain)
    assert "there is no folder" in refused(base, tmp_path / "nothing")


def test_an_adapter_with_nan_is_told(make: Make, tmp_path: Path) -> None:
    base = make("base", dtype="float32")
    adapter = adapt(base, tmp_path / "adapter", **SHAPES["small rank"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(LazyMoEError, match="NaN or infinite"):
        merge(recipe(base, f"{base}+{adapter}", base), tmp_path / "moe")


def test_from_another_cache_it_is_the_same(
    clean_hub: Hub, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make("base")
    clean_hub.add("acme/below", base)
    clean_hub.add("acme/on-top", adapt(base, tmp_path / "on-top", r=2, target_modules=MLP))
    found = set()
    for cache in ("one", "two"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / cache))
        found.add(opened("acme/below+acme/on-top").fingerprint)
    assert len(found) == 1 and opened("acme/below").fingerprint not in found
