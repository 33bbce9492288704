"""Importance matrices in both of llama.cpp's formats, sound and broken."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from lazymoe import LazyMoEError
from lazymoe.quantizing.importance import of_expert, read_importance

SUMS = {"blk.0.attn_q.weight": np.float32([[2, 4, 6]]), "blk.0.ffn_up_exps.weight": np.float32([[2, 4], [0, 0]])}
COUNTS = {"blk.0.attn_q.weight": [2], "blk.0.ffn_up_exps.weight": [2, 0]}


def write_gguf(file: Path) -> Path:
    writer = GGUFWriter(file, "none")
    writer.add_type("imatrix")
    for name, sums in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.float32(COUNTS[name]).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def write_dat(file: Path, value: float = 4.0) -> Path:
    name = b"blk.0.attn_q.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<iifff", 2, 3, 2.0, value, 6.0)
    file.write_bytes(struct.pack("<i", 1) + entry)
    return file


def test_both_formats_give_means(tmp_path: Path) -> None:
    for file in (write_gguf(tmp_path / "imatrix.gguf"), write_dat(tmp_path / "imatrix.dat")):
        found = read_importance(file)
        columns = of_expert(found, "blk.0.attn_q.weight", 0, 1, 3)
        assert columns is not None
        assert columns.tolist() == [1, 2, 3]


def test_each_expert_has_its_own_and_an_unused_one_has_all_alike(tmp_path: Path) -> None:
    found = read_importance(write_gguf(tmp_path / "imatrix.gguf"))
    rows = [of_expert(found, "blk.0.ffn_up_exps.weight", e, 2, 2) for e in range(2)]
    assert np.array_equal(rows, [[1, 2], [1, 1]])
    assert of_expert(found, "output.weight", 0, 1, 3) is None


def test_another_models_is_refused(tmp_path: Path) -> None:
    found = read_importance(write_dat(tmp_path / "imatrix.dat"))
    with pytest.raises(LazyMoEError, match="where this mixture has 5 columns"):
        of_expert(found, "blk.0.attn_q.weight", 0, 1, 5)


def test_what_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    sound = write_gguf(tmp_path / "sound.gguf").read_bytes()
    dat = write_dat(tmp_path / "sound.dat").read_bytes()
    broken = {"empty": b"", "text": b"importance: high", "cut.gguf": sound[:60], "cut.dat": dat[:-4],
              "none.dat": struct.pack("<i", 0), "many.dat": struct.pack("<i", -1)}  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    for file in (
        *(tmp_path / name for name in broken),
        tmp_path / "nowhere",
        write_dat(tmp_path / "nan", float("nan")),
    ):
        with pytest.raises(LazyMoEError) as e:
            read_importance(file)
        [problem] = e.value.problems
        assert problem.code == "input.imatrix"
        assert problem.where == str(file)
        assert len(str(problem).splitlines()) == 1
