"""What tensors are called: prefixes of wrappers are taken off, as transformers would have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from crossing import crossed
from small_models import KINDS, Make, recipe, rewrite, tensors_of
from stored_models import EMBEDDINGS, opened, refused, renamed, same

from lazymoe import check, merge
from lazymoe.checkpoint.opening import open_folder

WRAPPERS: dict[str, Callable[[str], str]] = {
    "PEFT": lambda name: f"base_model.model.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "DDP of torch.compile": lambda name: f"module._orig_mod.{name}",
    "torch.compile of each layer": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
    "checkpointed": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "Lightning": lambda name: f"model.{name}",
    "Fabric": lambda name: f"_forward_module.{name}",
    "TRL": lambda name: f"pretrained_model.{name}",
    "PEFT in DDP": lambda name: f"module.base_model.model.{name}",
}


@pytest.mark.parametrize(("wrapper", "kind"), crossed(WRAPPERS, ["llama", "phi", "lfm2", "gemma4_text"]))
def test_prefixes_of_wrappers_are_taken_off(wrapper: str, kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    source = open_folder(folder)
    expected = {name: source.load(name) for name in source.tensors}
    found = open_folder(renamed(folder, WRAPPERS[wrapper]))
    assert same(found, expected) and not found.ignored


def test_a_wrapped_pickle_merges_to_the_same(make: Make, tmp_path: Path) -> None:
    folder = make("model")
    merge(recipe(folder, folder, folder), tmp_path / "one")
    torch.save({f"module.{k}": v for k, v in tensors_of(folder).items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    merge(recipe(folder, folder, folder), tmp_path / "two", allow_pickle=True)
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("around", "kind"), crossed(["", "_orig_mod.", "module.", "base_model.model."], KINDS))
def test_a_decoder_saved_by_itself(around: str, kind: str, make: Make) -> None:
    folder = make("model", kind=kind)
    expected = {k: v for k, v in tensors_of(folder).items() if k.startswith("model.")}
    found = open_folder(renamed(folder, lambda name: around + name[6:] if name.startswith("model.") else None))
    assert found.tensors.keys() == expected.keys()
    assert same(found, expected)


def test_transformers_own_way_to_save_a_decoder(make: Make) -> None:
    tied, folder = make("tied", tie_word_embeddings=True), make("expert", seed=1, tie_word_embeddings=True)
    expected = tensors_of(folder)
    transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert "layers.0.mlp.up_proj.weight" in tensors_of(folder)
    assert same(open_folder(folder), expected)
    assert not check(recipe(tied, folder, folder)).errors
    assert not check(recipe(folder, folder, tied)).errors


def test_a_decoder_without_a_head_can_be_an_expert_only(make: Make) -> None:
    base, folder = make("base"), make("expert", seed=1)
    renamed(folder, lambda name: name[6:] if name.startswith("model.") else None)
    assert not check(recipe(base, folder, folder)).errors
    [problem] = check(recipe(folder, base, base)).errors
    assert "lm_head.weight" in problem.what


@pytest.mark.parametrize("prefix", ["student.", "language_model.", "model.language_model.", "a.b.model."])
def test_a_prefix_that_nothing_is_known_of_is_named(prefix: str, make: Make) -> None:
    folder = renamed(make("model"), lambda name: prefix + name)
    problem = refused(folder)
    assert f"the prefix '{prefix}" in problem.what and problem.code == "source.names"


def test_two_models_in_one_are_refused(make: Make) -> None:
    folder = make("model")
    rewrite(folder, lambda t: t.update({f"module.{k}": v.clone() for k, v in t.items()}))
    assert not same(opened(folder), {})  # its own names are there: the others have no place
    assert "source.no-place" in [p.code for p in check(recipe(folder, folder)).errors]
    renamed(folder, lambda name: name if name.startswith("module.") else f"_orig_mod.x.{name}")
    assert refused(folder).code == "source.names"


def test_the_same_name_twice_is_refused(make: Make) -> None:
    folder = make("model")
    rewrite(folder, lambda t: t.update({f"_orig_mod.{EMBEDDINGS}": t[EMBEDDINGS].clone()}))
    assert f"'{EMBEDDINGS}' twice" in refused(folder).what


def test_an_adapter_that_is_not_merged_is_named(make: Make) -> None:
    up = "model.layers.0.mlp.up_proj"
    folder = renamed(make("model"), lambda name: f"base_model.model.{name}".replace(f"{up}.", f"{up}.base_layer."))
    rewrite(folder, lambda t: t.update({f"base_model.model.{up}.lora_A.default.weight": torch.ones(2, 32)}))
    problem = refused(folder)
    assert "isn't merged" in problem.what and "merge_and_unload" in problem.remedy


@pytest.mark.parametrize(
    "names", [lambda n: f"language_model.{n}", lambda n: n.replace("model.", "model.language_model.", 1)]
)
def test_the_text_part_of_a_multimodal_model_by_itself(names: Callable[[str], str], make: Make, tmp_path: Path) -> None:
    folder = make("model")
    expected, text = tensors_of(folder), json.loads((folder / "config.json").read_text())
    renamed(folder, names)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text, "vision_config": {}}))
    assert same(open_folder(folder), expected)
    assert not check(recipe(folder, folder, folder)).errors
    rewrite(folder, lambda t: t.update({"vision_tower.patch.weight": torch.ones(3)}))
    found = check(recipe(folder, folder, folder))  # multimodal proper
    assert not found.errors and any("'vision_tower.patch.weight' stay behind" in str(w) for w in found.warnings)
