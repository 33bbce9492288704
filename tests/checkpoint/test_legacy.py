"""Files that end early, and pickles: torch's formats, what isn't one, and one that was saved anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import Make, configure, load_model, recipe, tensors_of
from stored_models import EMBEDDINGS, opened, refused, same

from lazymoe import merge
from lazymoe.checkpoint.legacy import open_pickle


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("left", [0, 1, 20, 300, -50])
def test_a_file_that_was_cut_short(left: int, old: bool, make: Make) -> None:
    folder = make("model")
    tensors, file = tensors_of(folder), folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=not old)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:left])
    words = "the file is empty" if left == 0 else "cut short"
    assert words in refused(folder).what
    (folder / "model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:left])
    problem = refused(folder, allow_pickle=True)
    assert words in problem.what or (left == 1 and not old and "isn't a pickle" in problem.what)
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:left])
    assert ("is empty" if left == 0 else "can't be read as JSON") in refused(folder).what


def test_torchs_old_format(make: Make, tmp_path: Path) -> None:
    folder = make("model")
    expected = tensors_of(folder)
    torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert same(opened(folder, allow_pickle=True), expected)
    merge(recipe(folder, folder, folder), tmp_path / "out", allow_pickle=True)
    loaded = load_model(tmp_path / "out").state_dict()
    assert torch.equal(loaded[EMBEDDINGS], expected[EMBEDDINGS].float())
    torch.save(
        {k: v * 2 for k, v in expected.items()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    assert same(opened(folder, allow_pickle=True), {k: v * 2 for k, v in expected.items()})


class Other:
    """Something that isn't a tensor."""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, "'state_dict' is something else"),
        ([torch.ones(1)], "isn't a dictionary of tensors"),
        ({}, "isn't a dictionary of tensors"),
        ({"a": Other()}, "nothing but tensors is loaded from a pickle"),
    ],
)
def test_a_pickle_of_something_else(saved: object, words: str, old: bool, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.bin", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=words):
        open_pickle(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html>\n<html>", b"\x00" * 999, b"PK\x03\x04" + b"\x00" * 99, b"{}", b"\x80\x02."]
)
def test_no_pickle_at_all(data: bytes, make: Make) -> None:
    folder = make("model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    problem = refused(folder, allow_pickle=True)
    assert problem.code == "source.broken" and len(str(problem)) < 400


def test_a_parameter_and_a_view_are_tensors_too(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": torch.nn.Parameter(whole), "b": whole[1:], "c": whole.T}, tmp_path / "x.bin")
    found = open_pickle(tmp_path / "x.bin")
    assert torch.equal(found["a"].load(), whole) and not found["a"].load().requires_grad
    assert torch.equal(found["b"].load(), whole[1:]) and torch.equal(found["c"].load(), whole.T)


@pytest.mark.parametrize("quantized", [False, True], ids=["whole", "8 bit"])
def test_a_pickle_saved_anew_is_read_anew(quantized: bool, make: Make) -> None:
    folder = make("model")
    tensors = tensors_of(folder)
    if quantized:
        down = "model.layers.0.mlp.down_proj.weight"
        tensors[down] = torch.ones(tensors[down].shape, dtype=torch.int8)
        tensors[down.replace("weight", "SCB")] = torch.full(tensors[down].shape[:1], 127.0)
        configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    (folder / "model.safetensors").unlink()
    for factor in (1, 2, 3):
        saved = {k: v * factor if v.dtype.is_floating_point else v for k, v in tensors.items()}
        torch.save(dict(sorted(saved.items(), reverse=factor == 2)), folder / "pytorch_model.bin")
        source = opened(folder, allow_pickle=True)
        for name in source.tensors:
            if quantized and name == down:
                assert torch.equal(source.load(name), torch.full(source.tensors[name].shape, factor).bfloat16())
            else:
                assert torch.equal(source.load(name), saved[name])


def test_scales_in_another_shard_saved_anew_are_read_anew(make: Make) -> None:
    folder = make("model")
    tensors, down = tensors_of(folder), "model.layers.0.mlp.down_proj.weight"
    scale = down.replace("weight", "SCB")
    tensors[down] = torch.ones(tensors[down].shape, dtype=torch.int8)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    for factor in (1, 2):
        save_file(
            {scale: torch.full(tensors[down].shape[:1], 127.0 * factor)}, folder / "model-00002-of-00002.safetensors"
        )
        assert opened(folder).load(down).unique().tolist() == [factor]
