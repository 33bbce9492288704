"""GGUF files read as transformers itself reads them, a tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hub_server import Hub
from small_models import recipe, tensors_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lazymoe import LazyMoEError, check, merge
from lazymoe.checkpoint.opening import open_folder, open_source
from lazymoe.recipe.reference import Reference

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(demo_models: Path, tmp_path: Path) -> Path:
    """The demo's base model as llama.cpp's converter writes it: heads permuted, in 8 bit."""
    return write(demo_models / "base", tmp_path / "folder" / "model.gguf")


def write(model: Path, file: Path, *more: str) -> Path:
    """A Llama's file, with more tensors by these names."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    file.parent.mkdir()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("demo")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    merges = [" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in tensors_of(model).items():
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                n = config[heads]
                tensor = tensor.reshape(n, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        data, own = tensor.float().numpy(), names.get_name(name, (".weight",))
        eight = gguf.GGMLQuantizationType.Q8_0
        if data.ndim > 1 and data.shape[1] % 32 == 0:
            writer.add_tensor(own, gguf.quantize(data, eight), raw_dtype=eight)
        else:
            writer.add_tensor(own, data)
    for name in more:
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_every_tensor_is_what_transformers_reads(file: Path, demo_models: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    for reference in (file, file.parent):  # a folder with nothing else is its file
        source = open_folder(reference)
        tied = {"lm_head.weight"} if "lm_head.weight" not in source.tensors else set()
        assert source.tensors.keys() == theirs.keys() - tied
        for name in source.tensors:
            assert torch.equal(source.load(name), theirs[name]), name
    assert torch.equal(source.rows(EMBEDDINGS, [5, 0]), theirs[EMBEDDINGS][[5, 0]])
    assert torch.equal(source.tensors[EMBEDDINGS].read(3, 900), theirs[EMBEDDINGS].reshape(-1)[3:900])
    whole = tensors_of(demo_models / "base")
    assert all((source.load(n).float() - whole[n].float()).abs().max() < 0.02 * whole[n].abs().max() for n in whole)


def test_a_mixture_of_one_and_of_its_own_model(file: Path, demo_models: Path, tmp_path: Path) -> None:
    merge(recipe(file, file, demo_models / "base"), tmp_path / "moe")
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["dtype"] == "bfloat16"
    folders = (tmp_path / "moe", demo_models / "base")
    ours, theirs = (AutoTokenizer.from_pretrained(f)("import os", add_special_tokens=False) for f in folders)
    assert ours["input_ids"] == theirs["input_ids"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "moe")


def test_from_the_hub(file: Path, hub: Hub) -> None:
    hub.add("acme/gguf", file.parent)
    expected = open_folder(file).load(EMBEDDINGS)
    for reference in ("acme/gguf", "acme/gguf/model.gguf", "acme/gguf/model.gguf@main"):
        source = open_source(Reference.parse(reference), "base_model")
        assert torch.equal(source.load(EMBEDDINGS), expected)
        assert source.pinned == f"acme/gguf{'/model.gguf' * ('model' in reference)}@{source.revision}"
        assert source.missing == {}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "seals.json"])
def test_what_was_damaged_in_the_cache_is_made_anew(name: str, file: Path, tmp_path: Path) -> None:
    folder = open_folder(file).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for damaged in (b"", b"\0" * len(before[name]), before[name][:-1], None):
        (folder / name).write_bytes(damaged) if damaged is not None else (folder / name).unlink()
        assert open_folder(file).folder == folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_mistakes(file: Path, demo_models: Path, tmp_path: Path) -> None:
    scaled = write(demo_models / "base", tmp_path / "other" / "scaled.gguf", "rope_freqs.weight")
    [problem] = check(recipe(scaled, demo_models / "base")).errors
    assert "'rope_freqs.weight', which transformers doesn't read" in problem.what
    assert not check(recipe(demo_models / "base", scaled)).errors

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    [problem] = check(recipe(broken, broken)).errors
    assert "can't be read as a GGUF model" in problem.what
    (file.parent / "model-Q8_0.gguf").write_bytes(file.read_bytes())
    with pytest.raises(LazyMoEError, match="has 2 GGUF files"):
        open_folder(file.parent)
    part = file.rename(file.with_name("model-00001-of-00002.gguf"))
    with pytest.raises(LazyMoEError, match="one part of several"):
        open_folder(part)
