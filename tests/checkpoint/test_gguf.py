"""GGUF files read as transformers itself reads them, a tensor at a time."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hub_server import Hub
from huggingface_hub import constants
from small_models import recipe, tensors_of
from stored_models import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lazymoe import LazyMoEError, check, merge
from lazymoe.checkpoint import gguf_header
from lazymoe.checkpoint.gguf import stored_rows
from lazymoe.checkpoint.gguf_header import inspect
from lazymoe.checkpoint.opening import fetch, open_folder, open_source
from lazymoe.planning import duration
from lazymoe.recipe.reference import Reference

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(demo_models: Path, tmp_path: Path) -> Path:
    """The demo's base model as llama.cpp's converter writes it: heads permuted, in 8 bit."""
    return write_gguf(demo_models / "base", tmp_path / "folder" / "model.gguf")


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


def test_from_the_hub(file: Path, clean_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of itself is brought at first, in a few ranges; the weights when they are wanted."""
    monkeypatch.setattr(gguf_header, "START", 4096)
    monkeypatch.setattr(duration, "LITTLE", 0)  # that its rate is measured, too
    clean_hub.add("acme/far-gguf", file.parent)
    here, size = open_folder(file), file.stat().st_size
    for reference in ("acme/far-gguf", "acme/far-gguf/model.gguf", "acme/far-gguf/model.gguf@main"):
        source = open_source(Reference.parse(reference), "base_model")
        assert source.pinned == f"acme/far-gguf{'/model.gguf' * ('model' in reference)}@{source.revision}"
        assert source.missing == {"model.gguf": size} and not source.away
        assert source.tensors.keys() == here.tensors.keys() and source.config == here.config
        assert stored_rows(source.tensors[EMBEDDINGS]).kind == "Q8_0"
    assert 4096 < clean_hub.sent_of(file.name) < size / 2

    found = check(recipe("acme/far-gguf", "acme/far-gguf"))
    assert [way.download for way in found.ways] == [size] * len(found.ways) and not any(w.remote for w in found.ways)
    assert "To download: " in str(found.ways[0])
    before = clean_hub.sent_of(file.name)
    fetch([(source, "base_model")], remote=True)  # which leaves weights only where they can be read there
    assert clean_hub.sent_of(file.name) - before == size
    for opened in (source, open_source(Reference.parse("acme/far-gguf"), "base_model")):
        assert opened.missing == {}
        assert all(torch.equal(opened.load(name), here.load(name)) for name in here.tensors)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "seals.json"])
def test_what_was_damaged_in_the_cache_is_made_anew(name: str, file: Path, tmp_path: Path) -> None:
    folder = open_folder(file).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for damaged in (b"", b"\0" * len(before[name]), before[name][:-1], None):
        (folder / name).write_bytes(damaged) if damaged is not None else (folder / name).unlink()
        assert open_folder(file).folder == folder
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_mistakes(file: Path, demo_models: Path, tmp_path: Path) -> None:
    scaled = write_gguf(demo_models / "base", tmp_path / "other" / "scaled.gguf", "rope_freqs.weight")
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


def said(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(tensors: int, *pairs: bytes, keys: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs) if keys is None else keys) + b"".join(pairs)


HOSTILE = {  # what begins a file, and what is said of it
    "33 million numbers": (header(0, said("k") + struct.pack("<IIQ", 9, 0, 33_000_000)), "claim 33000001 values"),
    "arrays in arrays": (
        header(0, said("k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 9999),
        "arrays in",
    ),
    "an endless text": (header(0, said("k") + struct.pack("<IQ", 8, 1 << 60)), "metadata have more than 128 MB"),
    "a long text": (header(0, said("k") + struct.pack("<IQ", 8, 1 << 28)), "metadata have more than 128 MB"),
    "endless keys": (header(0, keys=1 << 60), f"claim {1 << 60} values"),
    "endless tensors": (header(1 << 60), f"claims {1 << 60} tensors"),
    "endless dimensions": (header(1, keys=0) + said("t") + struct.pack("<I", 1 << 31), "of 2147483648 dimensions"),
    "two tensors of a name": (
        header(2, keys=0) + 2 * (said("t") + struct.pack("<IQIQ", 1, 32, 0, 0)),
        "two tensors of one name",
    ),
    "an unknown type": (header(0, said("k") + struct.pack("<I", 77)), "a value of unknown type 77"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_metadata_that_no_model_has_are_refused_at_once(case: str, tmp_path: Path) -> None:
    beginning, reason = HOSTILE[case]
    file = tmp_path / "model.gguf"
    file.write_bytes(beginning)
    os.truncate(file, 1 << 29)
    [problem] = check(recipe(file, file)).errors
    assert problem.code == "source.gguf" and reason in problem.what


def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    """Of any type and shape, at any alignment."""
    kinds = [kind for kind in gguf.GGMLQuantizationType if kind.name not in ("Q8_K", "Q8_1")]
    for alignment in (32, 64):
        writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
        writer.add_custom_alignment(alignment)
        writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "é"])
        writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
        for kind in kinds:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            for shape in ((block * 2,), (3, block), (2, 3, block * 2)):
                held = (*shape[:-1], shape[-1] // block * size)
                data = np.random.default_rng(len(shape)).integers(0, 255, held, np.uint8)
                writer.add_tensor(f"{kind.name}.{len(shape)}", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        head, theirs = inspect(tmp_path / "all.gguf"), gguf.GGUFReader(tmp_path / "all.gguf")
        assert head.architecture == "llama"
        assert head.tensors == [
            (t.name, tuple(map(int, reversed(t.shape))), int(t.tensor_type), int(t.data_offset)) for t in theirs.tensors
        ]


def test_a_cut_header_is_told(file: Path) -> None:
    os.truncate(file, 3000)
    [problem] = check(recipe(file, file)).errors
    assert problem.code == "source.gguf" and "metadata" in problem.what


def test_a_cut_tensor_is_told(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1000)
    [problem] = check(recipe(file, file)).errors
    assert problem.code == "source.gguf" and "can't be read as a GGUF model" in problem.what


def test_a_large_vocabulary_passes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "large.gguf", "llama")
    writer.add_token_list([f"t{i}" for i in range(256_000)])
    writer.add_token_scores([0.0] * 256_000)
    writer.add_token_merges([f"{i} {i}" for i in range(500_000)])
    writer.add_tensor("t", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    inspect(tmp_path / "large.gguf")


def test_from_another_cache_it_is_the_same(
    file: Path, clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_hub.add("acme/in-gguf", file.parent)
    found = set()
    for cache in ("one", "two"):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / cache))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"{cache}-config"))
        found.add(open_source(Reference.parse("acme/in-gguf"), "base_model").fingerprint)
    assert len(found) == 1
