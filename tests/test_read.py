"""Bytes and elements: just those asked for, and a word about a file that hasn't got them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lazymoe.errors import LazyMoEError
from lazymoe.header import FLOATS, read_header
from lazymoe.read import described, load_pickle, read_bytes, read_elements


def test_elements_are_those_that_were_saved(tmp_path: Path) -> None:
    saved = {name: torch.randn(5, 7).to(getattr(torch, name)) for name in FLOATS.values()}
    file = tmp_path / "weights.safetensors"
    save_file(saved, file)
    for name, tensor in read_header(file.name, file.stat().st_size, partial(read_bytes, file)).items():
        assert torch.equal(read_elements(tmp_path, tensor, 0, 35).reshape(5, 7), saved[name])
        assert torch.equal(read_elements(tmp_path, tensor, 3, 20), saved[name].flatten()[3:20])


def test_a_file_that_was_cut_meanwhile_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(bytes(10))
    assert read_bytes(file, 4, 6) == bytes(6)
    with pytest.raises(LazyMoEError, match=r"weights\.safetensors: the file ended early"):
        read_bytes(file, 4, 7)


def test_a_pickle_is_described_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    torch.save({"a": torch.ones(2, 3, dtype=torch.bfloat16)}, file)
    [(name, tensor)] = load_pickle(file).items()
    found = described(name, tensor, file.name)
    assert (found.name, found.dtype, found.shape, found.offset) == ("a", "BF16", (2, 3), None)


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    torch.save({"a": "no tensor"}, file)
    with pytest.raises(ValueError, match="isn't a dictionary of tensors"):
        load_pickle(file)
