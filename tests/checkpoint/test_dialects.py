"""Old layouts are read as today's: the same tensors, the same mixture to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import Make, contents, recipe, rewrite, tensors_of

from lazymoe import check, merge
from lazymoe.checkpoint.dialects import CONFIG
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.recipe.reference import Reference

NAMES = {  # today's to the old ones, as in transformers' convert_phi_weights_to_hf.py
    "model.embed_tokens": "transformer.embd.wte",
    "lm_head": "lm_head.linear",
    "model.final_layernorm": "lm_head.ln",
    "model.layers": "transformer.h",
    "input_layernorm": "ln",
    "self_attn": "mixer",
    "dense": "out_proj",
}


def old(model: Path, folder: Path, pickled: bool = False) -> Path:
    """A Phi model in its first layout."""
    tensors, found = tensors_of(model), {}
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("q_proj", "Wqkv")
        for today, then in NAMES.items():
            name = name.replace(today, then)
        found[name] = tensor
    config = json.loads((model / "config.json").read_text())
    then = {today: key for key, today in CONFIG.items()}
    config = {then.get(key, key): value for key, value in config.items() if key != "rope_parameters"}
    config |= {"model_type": "phi-msft", "rotary_dim": 6, "n_inner": None, "n_head_kv": None}
    folder.mkdir()
    shutil.copy(model / "generation_config.json", folder)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(found, folder / "pytorch_model.bin")
    else:
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def phi(make: Make) -> Path:
    return make("phi", kind="phi", intermediate_size=128, num_key_value_heads=4, partial_rotary_factor=0.75)


def test_phis_first_layout(phi: Path, make: Make, tmp_path: Path) -> None:
    source = open_folder(old(phi, tmp_path / "old"))
    expected = tensors_of(phi)
    assert source.tensors.keys() == expected.keys()
    assert all(torch.equal(source.load(name), tensor) for name, tensor in expected.items())
    for name, base in (("one", phi), ("two", tmp_path / "old")):
        merge(recipe(base, phi, tmp_path / "old"), tmp_path / name)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    different = {name for name in one if one[name] != two[name]}
    assert different == {"lazymoe.json", "recipe.yaml"}  # where it came from


def test_it_is_read_from_a_pickle_too(phi: Path, tmp_path: Path) -> None:
    pickled, plain = old(phi, tmp_path / "pickled", pickled=True), old(phi, tmp_path / "plain")
    source, expected = open_source(Reference(str(pickled)), "base_model", allow_pickle=True), open_folder(plain)
    assert source.config == expected.config
    assert source.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(source.load(name), expected.load(name)) for name in expected.tensors)
    for folder in (pickled, plain):
        merge(recipe(folder, folder, phi), tmp_path / f"{folder.name}-moe", allow_pickle=True)
    ours, theirs = tensors_of(tmp_path / "pickled-moe"), tensors_of(tmp_path / "plain-moe")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    [problem] = check(recipe(pickled, pickled)).errors
    assert problem.code == "source.pickle"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_head_that_nothing_reads_is_left_out(kind: str, make: Make) -> None:
    folder = make("tied", kind=kind, tie_word_embeddings=True)
    whole = check(recipe(folder, folder)).plan
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    again = check(recipe(folder, folder)).plan
    assert whole and again and [o.name for o in whole.outputs] == [o.name for o in again.outputs]
