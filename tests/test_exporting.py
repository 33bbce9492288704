"""A mixture as GGUF: what is in the files, that they are made again or gone on with, and what can't be made.

That llama.cpp makes the same bytes, and the same of them, is shown in `quantizing/test_llamacpp.py`.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from small_models import Make, configure, make_model, recipe, rewrite, tensors_of

from lazymoe import LazyMoEError, OutputError, merge, to_gguf
from lazymoe.cli import main
from lazymoe.output import gguf as export
from lazymoe.output import gguf_rows
from lazymoe.output.folder import WORK
from lazymoe.progress import Progress
from lazymoe.quantizing import native
from lazymoe.quantizing.gguf_file import DONE
from lazymoe.quantizing.importance import read_importance

LAYER = "model.layers.1."


def mixture(folder: Path, tokenizer: Path, kind: str = "llama", host: str = "mixtral", **fields: Any) -> Path:
    """A mixture of three small models, of the demo's tokenizer."""
    models = [
        make_model(folder, f"{kind}-{i}", seed=i, kind=kind, vocab_size=512, **fields.get("config", {}))
        for i in range(4)
    ]
    for model in models:
        for file in tokenizer.glob("token*"):
            shutil.copy(file, model)
    shared = [{"source_model": str(models[1])}] if fields.get("shared") else None
    given = recipe(models[0], *models[1:], architecture=host, experts_per_token=2, shared_experts=shared)
    if prompts := fields.get("prompts"):
        asked = [e.model_copy(update={"positive_prompts": [p]}) for e, p in zip(given.experts, prompts, strict=True)]
        given = given.with_experts(asked)
    merge(given, folder / "moe", device="cpu")
    return folder / "moe"


PROMPTS = ("The sea was calm.", "def add(a, b):\n    return a + b", "One, two, three, and four.")


@pytest.fixture
def prompted(tmp_path: Path, demo_models: Path) -> Path:
    """A mixture whose recipe has prompts."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "max_position_embeddings": 512}
    return mixture(tmp_path, demo_models / "base", config=sizes, prompts=PROMPTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 256}
    return mixture(tmp_path_factory.mktemp("mixtral"), demo_models / "base", config=sizes)


def read(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as float32."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


def says(file: Path) -> dict[str, Any]:
    """What a file says of itself."""
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}


def test_every_tensor_is_there_and_where_it_belongs(moe: Path, tmp_path: Path) -> None:
    [file] = to_gguf(moe, "F32").files["F32"]
    assert file == tmp_path / "moe-GGUF" / "moe-F32.gguf"
    found, given = read(file), {name: tensor.float().numpy() for name, tensor in tensors_of(moe).items()}
    experts = {role: [given[f"{LAYER}block_sparse_moe.experts.{e}.{w}.weight"] for e in range(3)]
               for role, w in (("gate", "w1"), ("down", "w2"), ("up", "w3"))}  # fmt: skip
    for role, matrices in experts.items():
        assert np.array_equal(found[f"blk.1.ffn_{role}_exps.weight"], matrices)
    assert np.array_equal(found["blk.1.ffn_gate_inp.weight"], given[f"{LAYER}block_sparse_moe.gate.weight"])
    assert np.array_equal(found["output.weight"], given["lm_head.weight"])
    # of each of 4 heads of 64 rows, the first of one half, the first of the other, and so on
    queries = given[f"{LAYER}self_attn.q_proj.weight"]
    order = [64 * head + half + i for head in range(4) for i in range(32) for half in (0, 32)]
    assert np.array_equal(found["blk.1.attn_q.weight"], queries[order])
    assert len(found) == 3 + 2 * 10
    assert sum(values.size for values in found.values()) == sum(values.size for values in given.values())


def test_it_says_what_the_mixture_is(moe: Path) -> None:
    [file] = to_gguf(moe, "Q8_0").files["Q8_0"]
    found = says(file)
    expected = {
        "general.architecture": "llama", "general.name": "moe", "general.file_type": 7, "llama.block_count": 2,
        "llama.embedding_length": 256, "llama.expert_count": 3, "llama.expert_used_count": 2,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
        "llama.context_length": 64, "llama.feed_forward_length": 256, "tokenizer.ggml.pre": "gpt-2",
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == 512
    assert found["general.size_label"].startswith("3x")


def test_quantized_values_are_near_and_q8_0_is_the_package_s_own(moe: Path) -> None:
    files = to_gguf(moe, "F32,Q8_0,q6_k,Q4_K_M,IQ4_XS,Q2_K").files
    exact = read(files["F32"][0])
    off = {}
    for kind, [file] in files.items():
        values = read(file)
        off[kind] = max(np.abs(values[name] - exact[name]).max() for name in exact if "_exps" in name)
    assert list(off) == ["F32", "Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS", "Q2_K"]
    assert 0 == off["F32"] < off["Q8_0"] < off["Q6_K"] < off["Q4_K_M"] < off["Q2_K"] < 1
    for tensor in gguf.GGUFReader(files["Q8_0"][0]).tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            own = gguf.quantize(exact[tensor.name], gguf.GGMLQuantizationType.Q8_0)
            assert np.array_equal(own.reshape(-1), tensor.data.reshape(-1))


def test_blocks_and_threads_make_no_difference(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_gguf(moe, "Q4_K_M,F16", tmp_path / "one", threads=1)
    monkeypatch.setattr(gguf_rows, "BLOCK", 1 << 13)
    monkeypatch.setattr(export, "CHUNK", 1 << 10)
    to_gguf(moe, ["Q4_K_M", "F16"], tmp_path / "two", threads=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_importance_matrix_counts_for_each_expert(moe: Path, tmp_path: Path) -> None:
    name = b"blk.0.ffn_down_exps.weight"
    values = np.ones((3, 256), np.float32)
    values[1, :128] = 1e6  # the second expert's first half is all that counts
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, values.size) + values.tobytes()
    (tmp_path / "imatrix.dat").write_bytes(struct.pack("<i", 1) + entry)
    plain = read(to_gguf(moe, "F32,Q3_K_S", tmp_path / "plain").files["Q3_K_S"][0])
    weighed = read(to_gguf(moe, "Q3_K_S", tmp_path / "weighed", imatrix=tmp_path / "imatrix.dat").files["Q3_K_S"][0])
    exact = read(tmp_path / "plain" / "moe-F32.gguf")[name.decode()]

    def off(found: dict[str, np.ndarray], expert: int) -> float:
        return float(np.square(found[name.decode()] - exact)[expert, :, :128].mean())

    assert off(weighed, 1) < 0.95 * off(plain, 1)
    others = {key for key in plain if not np.array_equal(plain[key], weighed[key])}
    assert others == {name.decode()}
    # of the others nothing is known, which no type stumbles over
    assert to_gguf(moe, "IQ2_XS", tmp_path / "small", imatrix=tmp_path / "imatrix.dat").files["IQ2_XS"]


def test_prompts_give_an_importance_matrix_that_others_can_use(prompted: Path, tmp_path: Path) -> None:
    made = to_gguf(prompted, "Q3_K_S,IQ2_XS", tmp_path / "one", device="cpu")
    matrix = tmp_path / "one" / "moe.imatrix.gguf"
    found = read_importance(matrix)
    assert {name for name in found if name.startswith("blk.1.")} == {
        f"blk.1.{part}.weight"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    }
    given = to_gguf(prompted, "Q3_K_S", tmp_path / "two", imatrix=matrix)
    plain = to_gguf(prompted, "Q3_K_S", tmp_path / "three", imatrix=False)
    [own], [same], [other] = (each.files["Q3_K_S"] for each in (made, given, plain))
    assert own.read_bytes() == same.read_bytes() != other.read_bytes()
    names = {path.name for folder in ("two", "three") for path in (tmp_path / folder).iterdir()}
    assert names == {WORK, own.name, "gguf.json", "recipe.yaml"}


def test_there_is_no_matrix_where_none_is_wanted(prompted: Path, whole: Path, tmp_path: Path) -> None:
    for folder, kinds in ((prompted, "F16,Q8_0"), (whole, "Q4_K_M")):  # they gain nothing; there are no prompts
        to_gguf(folder, kinds, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.imatrix.gguf"))
        shutil.rmtree(tmp_path / "out")


def test_it_goes_on_with_the_matrix_that_is_there(prompted: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "moe-GGUF" / "moe.imatrix.gguf"
    to_gguf(prompted, "Q4_K_M", device="cpu")
    made = matrix.stat().st_mtime_ns
    stages: list[str] = []
    [file] = to_gguf(prompted, "Q3_K_S", progress=lambda stage, *_: stages.append(stage)).files["Q3_K_S"]
    assert matrix.stat().st_mtime_ns == made and set(stages) == {"quantize"}
    sound = file.read_bytes()
    (prompted.parent / "llama-0").rename(prompted.parent / "gone")  # which nothing takes any more
    file.unlink()
    to_gguf(prompted, "Q3_K_S", device="cpu")
    assert file.read_bytes() == sound
    (prompted.parent / "gone").rename(prompted.parent / "llama-0")
    matrix.unlink()
    to_gguf(prompted, "Q3_K_M", device="cpu", progress=lambda stage, *_: stages.append(stage))
    assert matrix.is_file() and "imatrix" in stages


def test_where_models_are_gone_it_does_without_and_says_so(prompted: Path, tmp_path: Path) -> None:
    [plain] = to_gguf(prompted, "Q4_K_M", tmp_path / "plain", imatrix=False).files["Q4_K_M"]
    (prompted.parent / "llama-0").rename(prompted.parent / "gone")
    made = to_gguf(prompted, "Q4_K_M", device="cpu")
    assert made.files["Q4_K_M"][0].read_bytes() == plain.read_bytes()
    [warning] = made.warnings
    assert warning.code == "output.unweighted" and len(str(warning).splitlines()) == 1
    with pytest.raises(LazyMoEError, match="IQ2_XS is no good without an importance matrix"):
        to_gguf(prompted, "IQ2_XS", device="cpu")
    assert main(["gguf", str(prompted), "Q4_K_M", "--no-imatrix", "--quiet"]) == 0


def test_a_large_one_is_cut_as_llama_cpp_cuts(moe: Path, tmp_path: Path) -> None:
    [file] = to_gguf(moe, "Q8_0", tmp_path / "one").files["Q8_0"]
    files = to_gguf(moe, "Q8_0", tmp_path / "cut", largest=300_000).files["Q8_0"]
    n = len(files)
    assert n > 3
    assert [path.name for path in files] == [f"moe-Q8_0-{i:05}-of-{n:05}.gguf" for i in range(1, n + 1)]
    parts = [read(path) for path in files]
    together = {name: values for part in parts for name, values in part.items()}
    assert together.keys() == read(file).keys()
    assert all(np.array_equal(together[name], values) for name, values in read(file).items())
    for i, path in enumerate(files):
        found = says(path)
        assert (found["split.no"], found["split.count"], found["split.tensors.count"]) == (i, n, len(together))
        assert ("tokenizer.ggml.tokens" in found) == (i == 0)


class Killed(BaseException):
    """A process's end."""


def killed(share: float) -> Progress:
    """A progress that ends the process when so much is done."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "quantize" and done > share * total:
            raise Killed

    return progress


@pytest.mark.parametrize("damaged", ["", "weights", "header"])
def test_it_goes_on_where_it_was_stopped(damaged: str, moe: Path, tmp_path: Path) -> None:
    to_gguf(moe, "Q4_K_M,F16", tmp_path / "straight")
    with pytest.raises(Killed):
        to_gguf(moe, "Q4_K_M,F16", tmp_path / "out", progress=killed(0.9))
    assert not list((tmp_path / "out").glob("*.gguf"))
    if damaged:  # a byte of what was noted, or of the header
        [half] = (tmp_path / "out" / WORK).glob("*Q4_K_M.gguf")
        [note] = (tmp_path / "out" / WORK).glob(f"*Q4_K_M.gguf{DONE}")
        at = {"header": 100, "weights": json.loads(note.read_text())["done"].popitem()[1][0][0]}[damaged]
        with open(half, "r+b") as f:
            f.seek(at)
            [byte] = f.read(1)
            f.seek(at)
            f.write(bytes([byte ^ 1]))
    steps: list[int] = []
    to_gguf(moe, "Q4_K_M,F16", tmp_path / "out", progress=lambda _, done, total: steps.append(100 * done // total))
    assert steps[-1] == 100 and (steps[0] > 30) == (damaged != "header")  # the first layer of two was there
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_what_is_there_is_not_made_again_and_what_changed_is(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [file] = to_gguf(moe, "Q8_0", tmp_path / "out").files["Q8_0"]
    made, sound = file.stat().st_mtime_ns, file.read_bytes()
    to_gguf(moe, "Q8_0,F16", tmp_path / "out")
    assert file.stat().st_mtime_ns == made
    for damaged in (sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1])):
        file.write_bytes(damaged)
        to_gguf(moe, "Q8_0", tmp_path / "out")
        assert file.read_bytes() == sound


def test_it_takes_no_quantizer_for_what_is_only_cut_off(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.quantizer.cache_clear()
    monkeypatch.setattr(native, "_from_xllamacpp", lambda: None)
    monkeypatch.setattr(native, "_from_libgguf", lambda: None)
    assert set(to_gguf(moe, "F16,BF16").files) == {"F16", "BF16"}
    with pytest.raises(LazyMoEError, match="pip install xllamacpp"):
        to_gguf(moe, "Q4_K_M")
    native.quantizer.cache_clear()


def test_both_quantizers_make_the_same(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libgguf")
    kinds = "Q8_0,Q5_K_M,Q3_K_M,IQ4_XS,IQ3_S"
    to_gguf(moe, kinds, tmp_path / "one", threads=4)
    native.quantizer.cache_clear()
    monkeypatch.setattr(native, "_from_xllamacpp", lambda: None)
    to_gguf(moe, kinds, tmp_path / "two", threads=4)
    native.quantizer.cache_clear()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("kind", "host", "shared", "told"),
    [
        ("qwen2", "qwen2_moe", False, "'architecture: granitemoe'"),
        ("llama", "deepseek", False, "'architecture: mixtral'"),
        ("olmo2", "flex_olmo", False, "It does for: mixtral, "),
        ("cohere2", "cohere2_moe", True, "without shared_experts"),
        ("phi3", "glm4_moe", False, "'residual_scale: 0'"),
        ("smollm3", "granitemoe_swa", False, "It does for: mixtral, "),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    kind: str, host: str, shared: bool, told: str, tmp_path: Path, demo_models: Path
) -> None:
    with pytest.raises(OutputError) as e:
        to_gguf(mixture(tmp_path, demo_models / "base", kind, host, shared=shared), "F16")
    [problem] = e.value.problems
    assert problem.code == "output.gguf"
    assert told in problem.remedy
    assert len(str(problem).splitlines()) == 1
    assert not (tmp_path / "moe-GGUF").exists()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "attention_factor": 1.5},
    ],
)
def test_rotary_positions_that_it_has_not_are_refused(rope: dict[str, Any], moe: Path) -> None:
    with pytest.raises(OutputError, match=f"doesn't compute its rotary positions, {rope['rope_type']}"):
        to_gguf(configure(moe, rope_parameters=rope | {"rope_theta": 10000.0}), "F16")


def test_a_window_that_it_does_not_know_is_told(moe: Path) -> None:
    assert not to_gguf(configure(moe, sliding_window=64), "F16").warnings  # its whole context
    [warning] = to_gguf(configure(moe, sliding_window=32), "F16").warnings
    assert warning.code == "output.window"
    assert "32 tokens" in warning.what


def test_types_that_are_no_good_without_importance_are_refused(moe: Path) -> None:
    with pytest.raises(LazyMoEError, match=r"IQ2_XS is no good without an importance matrix\. Give one with --imatrix"):
        to_gguf(moe, "Q4_K_M,IQ2_XS")


def test_values_that_a_type_can_not_hold_are_refused(make: Make, demo_models: Path, tmp_path: Path) -> None:
    model = rewrite(make("large", vocab_size=512), lambda tensors: tensors["lm_head.weight"].fill_(1e6))
    for file in (demo_models / "base").glob("token*"):
        shutil.copy(file, model)
    merge(recipe(model, model, model), tmp_path / "moe", device="cpu")
    with pytest.raises(LazyMoEError, match=r"output.weight has values that F16 can't hold\. Choose BF16"):
        to_gguf(tmp_path / "moe", "F16")
    assert to_gguf(tmp_path / "moe", "BF16").files


def spoil_weights(moe: Path) -> None:
    [shard] = moe.glob("model-*.safetensors")
    rewrite(moe, lambda tensors: tensors["lm_head.weight"].zero_(), shard.name)


def spoil_index(moe: Path) -> None:
    index = json.loads((moe / "model.safetensors.index.json").read_text())
    index["weight_map"].pop("lm_head.weight")
    (moe / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_weights, "its bytes aren't those that the merge wrote"),
        (spoil_index, "its tensors aren't those that its model.safetensors.index.json names"),
        (lambda moe: configure(moe, num_local_experts=None), "its config.json doesn't fit its weights"),
        (lambda moe: configure(moe, num_hidden_layers=1), "its config.json doesn't fit its weights"),
        (
            lambda moe: (moe / "README.md").write_text("---\na: [\n---\n"),
            "its README.md or generation_config.json can't be",
        ),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(
    spoil: Callable[[Path], Any], told: str, moe: Path, tmp_path: Path
) -> None:
    spoil(moe)
    with pytest.raises(OutputError) as e:
        to_gguf(moe, "Q8_0")
    [problem] = e.value.problems
    assert problem.code == "output.damaged"
    assert told in problem.what
    assert len(str(problem).splitlines()) == 1
    assert not (tmp_path / "moe-GGUF").exists()


def test_no_room_is_told_before_anything_is_written(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(OutputError) as e:
        to_gguf(moe, "F16")
    assert e.value.problems[0].code == "output.no-room"
    assert not (tmp_path / "moe-GGUF").exists()


def test_as_typed(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gguf", str(moe), "F16,q8_0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert [(file["type"], Path(file["path"]).name) for file in told["files"]] == [
        ("F16", "moe-F16.gguf"),
        ("Q8_0", "moe-Q8_0.gguf"),
    ]
    assert all(Path(file["path"]).stat().st_size == file["bytes"] for file in told["files"])
    assert main(["gguf", str(moe), "Q4"]) == 2
    assert main(["gguf", str(tmp_path), "F16"]) == 2
    assert main(["gguf", str(moe), "F16", "--threads", "-1"]) == 2
    assert main(["gguf", str(moe), "F16", str(moe / "config.json")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in errors if "Quantizing" not in line] == ["error"] * 4


def test_progress_counts_the_mixture_s_bytes(moe: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    to_gguf(moe, "F16", progress=lambda *step: steps.append(step))
    total = sum(tensor.nbytes for tensor in tensors_of(moe).values())
    assert steps[-1] == ("quantize", total, total)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


@pytest.mark.parametrize(
    ("kind", "host"),
    [("qwen3", "qwen3_moe"), ("granite", "granitemoe"), ("ernie4_5", "ernie4_5_moe"), ("lfm2", "lfm2_moe"),
     ("cohere2", "cohere2_moe"), ("llama", "glm4_moe"), ("hunyuan_v1_dense", "hunyuan_v1_moe")],
)  # fmt: skip
def test_every_host_loses_nothing(kind: str, host: str, tmp_path: Path, demo_models: Path) -> None:
    folder = mixture(tmp_path, demo_models / "base", kind, host, shared=host == "glm4_moe")
    found = read(to_gguf(folder, "F32").files["F32"][0])
    given = tensors_of(folder).values()
    assert sum(values.size for values in found.values()) == sum(tensor.numel() for tensor in given)
    sums = [sum(float(values.astype(np.float64).sum()) for values in found.values())]
    assert sums[0] == pytest.approx(sum(float(tensor.to(torch.float64).sum()) for tensor in given))
