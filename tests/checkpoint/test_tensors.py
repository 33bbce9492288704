"""Bytes and elements: just those asked for, and a word about a file that hasn't got them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lazymoe.checkpoint.legacy import open_pickle
from lazymoe.checkpoint.safetensors import open_file
from lazymoe.checkpoint.tensors import FLOATS
from lazymoe.files import read_bytes


def test_elements_are_those_that_were_saved(tmp_path: Path) -> None:
    saved = {name: torch.randn(5, 7).to(getattr(torch, name)) for name in FLOATS.values()}
    file = tmp_path / "weights.safetensors"
    save_file(saved, file)
    for name, tensor in open_file(file).items():
        assert torch.equal(tensor.load(), saved[name])
        assert torch.equal(tensor.read(3, 20), saved[name].flatten()[3:20])
        part = tensor.part(3, 17)
        assert torch.equal(part.part(2, 5).read(1), saved[name].flatten()[6:10])
        lies = part.span()
        assert lies is not None and read_bytes(*lies) == saved[name].flatten()[3:20].view(torch.uint8).numpy().tobytes()


def test_a_pickle_is_described_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    torch.save({"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}, file)
    found = open_pickle(file)["a"]
    assert (found.name, found.dtype, found.shape, found.span()) == ("a", "BF16", (2, 3), None)
    assert found.part(2, 3).read().tolist() == [2, 3, 4]


def test_a_pickle_that_was_saved_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((2,), value)}, file)
        assert open_pickle(file)["a"].read().tolist() == [value, value]


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    torch.save({"a": "no tensor"}, file)
    with pytest.raises(ValueError, match="isn't a dictionary of tensors"):
        open_pickle(file)
