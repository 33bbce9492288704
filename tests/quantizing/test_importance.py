"""Importance matrices in both of llama.cpp's formats, sound and broken."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from small_models import IDS, Make, load_model, recipe, tensors_of
from torch.nn.functional import silu

from lazymoe import LazyMoEError, merge
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.inputs import Inputs
from lazymoe.forward.mixture import run
from lazymoe.quantizing.importance import Squares, gathered, of_expert, read_importance, write_importance

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


def gather(folder: Path, *models: Path, **fields: object) -> dict[str, Squares]:
    """Merge models and run the mixture: what was gathered, by llama.cpp's names."""
    plan = merge(recipe(*models, **fields), folder).plan
    inputs = Inputs([torch.ones_like(IDS, dtype=torch.bool)], "cpu")
    run(plan, open_folder(folder), [IDS], "cpu", lambda *_: None, inputs)
    return gathered(plan, inputs)


def test_each_expert_has_what_transformers_sends_it(make: Make, tmp_path: Path) -> None:
    found = gather(tmp_path / "moe", *(make(f"model-{i}", seed=i, dtype="float32") for i in range(4)))
    model, weights, given = load_model(tmp_path / "moe"), tensors_of(tmp_path / "moe"), []
    network = model.model.layers[1].mlp
    network.register_forward_pre_hook(lambda _, args: given.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(IDS)
    x = given[0]  # [N, H]
    chosen = (x @ network.gate.weight.T).topk(2).indices
    for expert in range(3):
        own = x[(chosen == expert).any(1)]
        w1, w3 = (weights[f"model.layers.1.block_sparse_moe.experts.{expert}.{w}.weight"] for w in ("w1", "w3"))
        inside = silu(own @ w1.T) * (own @ w3.T)
        for role, read in (("gate", own), ("up", own), ("down", inside)):
            sums, counts = found[f"blk.1.ffn_{role}_exps.weight"]
            assert counts[expert] == len(own)
            assert np.allclose(sums[expert], read.square().sum(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "host", "other"),
    [
        ("phi3", "mixtral", {}),
        ("granite", "granitemoe", {}),
        ("qwen3", "qwen3_moe", {}),
        ("ernie4_5", "ernie4_5_moe", {}),
        ("cohere2", "cohere2_moe", {}),
        ("lfm2", "lfm2_moe", {"shortconv.in_proj", "shortconv.out_proj"}),
        ("qwen3_5_text", "qwen3_5_moe_text", {"attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out"}),
        ("llama", "glm4_moe", {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"}),
    ],
)
def test_every_matrix_of_every_host_has_some(kind: str, host: str, other: set[str], make: Make, tmp_path: Path) -> None:
    models = [make(f"model-{i}", seed=i, kind=kind) for i in range(3)]
    shared = {"shared_experts": [{"source_model": str(models[1])}]} if host == "glm4_moe" else {}
    found = gather(tmp_path / "moe", *models, architecture=host, **shared)
    usual = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    assert {name.split(".", 2)[2].removesuffix(".weight") for name in found} == usual | set(other)
    for name, (sums, counts) in found.items():
        assert sums.shape == (2 if "_exps" in name else 1, sums.shape[1])
        assert counts.sum() == IDS.numel() * (2 if "_exps" in name else 1), name
        assert (sums > 0).all()


def test_what_is_written_is_read_again_and_is_as_the_format_has_it(tmp_path: Path) -> None:
    found = {name: Squares(sums, np.float32(COUNTS[name])) for name, sums in SUMS.items()}
    file = tmp_path / "imatrix.gguf"
    write_importance(file, found, "prompts", [256, 100])
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]
    read, expected = read_importance(file), read_importance(write_gguf(tmp_path / "other.gguf"))
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in read)
    says = {key: field.contents() for key, field in GGUFReader(file).fields.items() if not key.startswith("GGUF.")}
    assert says == {"general.type": "imatrix", "imatrix.datasets": ["prompts"], "imatrix.chunk_count": 2,
                    "imatrix.chunk_size": 256}  # fmt: skip
