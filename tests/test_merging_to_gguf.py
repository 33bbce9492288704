"""From a recipe to GGUF: the files of the finished mixture, to the byte, with no checkpoint between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from small_models import configure, make_model, recipe, rewrite, write_recipe
from test_exporting import Killed, contents, killed
from transformers import AutoModelForCausalLM

import lazymoe.output.gguf
import lazymoe.output.gguf_rows
from lazymoe import LazyMoEError, OutputError, Recipe, SourceError, merge, merge_to_gguf, to_gguf
from lazymoe.cli import main
from lazymoe.output.quantized import open_quantized
from lazymoe.quantizing.importance import read_importance

SIZES = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 512, "std": 0.05}
TEXTS = ["The words of one", "and some of another, which are more", "x = [1, 2, 3]"]
TYPES = "Q4_K_M,F16"
SMALL = "Q3_K_S,IQ2_S"


def models(folder: Path, tokenizer: Path, kind: str = "llama", **config: Any) -> list[Path]:
    """A base model and three experts, of the demo's tokenizer."""
    made = [make_model(folder, f"{kind}-{i}", seed=i, kind=kind, **(SIZES | config)) for i in range(4)]
    for model in made:
        for file in tokenizer.glob("token*"):
            shutil.copy(file, model)
    return made


def wanted(made: list[Path], changes: dict[int, dict[str, Any]] | None = None, **fields: Any) -> Recipe:
    """A recipe of models with prompts, some of its experts changed."""
    given = recipe(*made, **fields)
    every = [
        expert.model_copy(update={"positive_prompts": [text], **(changes or {}).get(i, {})})
        for i, (expert, text) in enumerate(zip(given.experts, TEXTS, strict=True))
    ]
    return given.with_experts(every)


def adapted(base: Path, out: Path) -> str:
    """A reference to a model with an adapter of random weights on it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
            peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj", "down_proj", "q_proj"]),
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) * 0.1
    model.save_pretrained(out)
    return f"{base}+{out}"


Fields = dict[str, Any]
CASES: dict[str, tuple[Fields, dict[int, Fields], Fields]] = {  # what is special in the models, the experts, the recipe
    "fit": ({}, {}, {"gate_mode": "fit"}),
    "fit, tied": ({"tie_word_embeddings": True}, {}, {"gate_mode": "fit"}),
    "fit, corrected": ({}, {}, {"gate_mode": "fit", "expert_weights": "corrected"}),
    "fit, noise and scale": ({}, {0: {"noise_scale": 0.1}, 1: {"residual_scale": 0.5}}, {"gate_mode": "fit"}),
    "fit, LoRA": ({}, {2: {"lora": True}}, {"gate_mode": "fit"}),
    "hidden": ({}, {}, {"gate_mode": "hidden"}),
    "hidden, tied": ({"tie_word_embeddings": True}, {1: {"noise_scale": 0.1}}, {"gate_mode": "hidden"}),
    "random": ({}, {}, {"gate_mode": "random"}),
    "random, tied, LoRA": ({"tie_word_embeddings": True}, {2: {"lora": True}}, {"gate_mode": "random"}),
    "random, averaged": ({}, {}, {"gate_mode": "random", "shared_weights": "average"}),
    "all experts in one tensor": (
        {"kind": "granite"}, {0: {"noise_scale": 0.1}}, {"gate_mode": "fit", "architecture": "granitemoe"},
    ),
    "two matrices in one tensor": ({"kind": "phi3"}, {1: {"residual_scale": 0.5}}, {"gate_mode": "fit"}),
}  # fmt: skip


QUICK = {"fit, noise and scale", "hidden, tied", "random, tied, LoRA", "two matrices in one tensor"}


@pytest.mark.parametrize(
    ("config", "changes", "fields"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name not in QUICK)) for name, case in CASES.items()],
)
def test_the_files_are_those_of_the_finished_mixture(
    config: dict[str, Any],
    changes: dict[int, dict[str, Any]],
    fields: dict[str, Any],
    demo_models: Path,
    tmp_path: Path,
) -> None:
    made = models(tmp_path, demo_models / "base", **config)
    for change in changes.values():
        if change.pop("lora", False):
            change["source_model"] = adapted(made[3], tmp_path / "adapter")
    given = wanted(made, changes, **fields)
    there = {"device": "cpu", "seed": 3}
    done = merge_to_gguf(given, TYPES, tmp_path / "straight" / "moe-GGUF", imatrix=False, **there)
    assert not list((tmp_path / "straight").rglob("*.safetensors"))
    merge(given, tmp_path / "moe", **there)
    to_gguf(tmp_path / "moe", TYPES, imatrix=False)
    found = contents(tmp_path / "straight" / "moe-GGUF")
    assert found == contents(tmp_path / "moe-GGUF")
    assert set(found) == {"moe-F16.gguf", "moe-Q4_K_M.gguf"} == {p.name for [p] in done.files.values()}
    report = tmp_path / "moe" / "report.json"
    assert report.is_file() == (tmp_path / "straight" / "moe-GGUF" / "report.json").is_file()
    if report.is_file():
        assert report.read_bytes() == (tmp_path / "straight" / "moe-GGUF" / "report.json").read_bytes()

    # and by the importance matrix that is found out on the way, which must be known before anything is quantized
    merge_to_gguf(given, SMALL, tmp_path / "weighed" / "moe", **there)
    matrix = tmp_path / "weighed" / "moe" / "moe.imatrix.gguf"
    to_gguf(tmp_path / "moe", SMALL, tmp_path / "by-file" / "moe", imatrix=matrix)
    assert contents(tmp_path / "weighed" / "moe") == contents(tmp_path / "by-file" / "moe") | {
        matrix.name: matrix.read_bytes()
    }


@pytest.fixture
def given(demo_models: Path, tmp_path: Path) -> Recipe:
    return wanted(models(tmp_path, demo_models / "base", num_hidden_layers=4), gate_mode="fit")


@pytest.mark.parametrize(("mode", "share"), [("fit", 0.3), ("fit", 0.7), ("fit", 0.999), ("random", 0.7)])
def test_it_goes_on_where_it_was_stopped(mode: Any, share: float, given: Recipe, tmp_path: Path) -> None:
    given = given.with_fields(gate_mode=mode)
    merge_to_gguf(given, TYPES, tmp_path / "straight" / "moe", device="cpu")
    with pytest.raises(Killed):
        merge_to_gguf(given, TYPES, tmp_path / "moe", device="cpu", progress=killed(share))
    assert {path.name for path in (tmp_path / "moe").iterdir()} <= {".lazymoe", "moe.imatrix.gguf"}
    steps: dict[str, list[int]] = {"sweep": []}

    def watch(stage: str, done: int, total: int) -> None:
        steps.setdefault(stage, []).append(done)

    merge_to_gguf(given, TYPES, tmp_path / "moe", device="cpu", progress=watch)
    assert contents(tmp_path / "moe") == contents(tmp_path / "straight" / "moe")
    if mode == "fit" and share > 0.5:
        assert min(steps["sweep"], default=4) > 1  # the first layers weren't run again
    assert (tmp_path / "moe" / "moe.imatrix.gguf").is_file()
    left = sorted(path.name for path in (tmp_path / "moe" / ".lazymoe").iterdir())
    assert left == ["moe-F16.gguf.json", "moe-Q4_K_M.gguf.json", "moe.imatrix.gguf.json"]
    found = open_quantized(tmp_path / "moe")
    assert set(found.files) == {"F16", "Q4_K_M"} and found.matrix


def test_the_importance_matrix_is_about_that_of_a_pass_through_the_mixture(given: Recipe, tmp_path: Path) -> None:
    """Which reads each prompt once, and rounds nothing."""
    merge_to_gguf(given, "Q4_K_M", tmp_path / "swept" / "moe", device="cpu")
    merge(given, tmp_path / "moe", device="cpu")
    to_gguf(tmp_path / "moe", "Q4_K_M", device="cpu")
    swept, passed = (read_importance(tmp_path / f / "moe.imatrix.gguf") for f in ("swept/moe", "moe-GGUF"))
    assert swept.keys() == passed.keys() and len(swept) == 4 * 7 + 1
    for name, values in swept.items():
        assert values.shape == passed[name].shape
        if "_exps" not in name:  # few tokens go to an expert
            assert np.corrcoef(values.reshape(-1), passed[name].reshape(-1))[0, 1] > 0.9, name


def test_what_is_there_is_not_made_again_and_what_changed_is(given: Recipe, tmp_path: Path) -> None:
    [file] = merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu").files["Q8_0"]
    made, sound = file.stat().st_mtime_ns, file.read_bytes()
    merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu")
    assert file.stat().st_mtime_ns == made
    merge_to_gguf(given, "Q8_0,F16", tmp_path / "moe", device="cpu")
    assert file.stat().st_mtime_ns == made
    assert (tmp_path / "moe" / "moe-F16.gguf").is_file()
    rewrite(tmp_path / "llama-1", lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].add_(1))
    merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu")
    assert file.read_bytes() != sound


def test_another_one_that_was_interrupted_is_not_taken_for_it(given: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu", progress=killed(0.5))
    with pytest.raises(OutputError, match=r"another merge was interrupted in this folder\. Name another"):
        merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu", seed=1)
    with pytest.raises(OutputError, match="holds another merge"):
        merge(given, tmp_path / "moe", device="cpu")
    merge_to_gguf(given, "Q8_0", tmp_path / "moe", device="cpu")


def test_a_broken_expert_leaves_nothing_that_was_not_there(given: Recipe, tmp_path: Path) -> None:
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "mine.txt").write_text("mine")
    sound = (tmp_path / "llama-3" / "model.safetensors").read_bytes()
    rewrite(tmp_path / "llama-3", lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"].fill_(float("nan")))
    for out in ("moe", "new"):
        with pytest.raises(SourceError, match="NaN or infinite"):
            merge_to_gguf(given.with_fields(gate_mode="random"), TYPES, tmp_path / out, device="cpu")
    assert [path.name for path in (tmp_path / "moe").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "new").exists()
    (tmp_path / "llama-3" / "model.safetensors").write_bytes(sound)
    assert merge_to_gguf(given, TYPES, tmp_path / "moe", device="cpu").files


def test_a_folder_that_holds_something_else_is_refused(given: Recipe, tmp_path: Path) -> None:
    merge(given, tmp_path / "moe", device="cpu")
    before = {path.name for path in (tmp_path / "moe").iterdir()}
    with pytest.raises(OutputError, match=r"this folder holds a mixture\. Name another folder"):
        merge_to_gguf(given, "F16", tmp_path / "moe", device="cpu")
    assert {path.name for path in (tmp_path / "moe").iterdir()} == before
    with pytest.raises(OutputError, match="this is a file"):
        merge_to_gguf(given, "F16", tmp_path / "moe" / "config.json", device="cpu")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: configure(model, model_type="qwen2", architectures=["Qwen2ForCausalLM"]), ""),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "tokenizer"),
    ],
    ids=["a model", "a tokenizer"],
)
def test_what_llama_cpp_has_not_is_told_before_anything_is_made(
    change: Any, told: str, given: Recipe, tmp_path: Path
) -> None:
    change(tmp_path / "llama-0")
    with pytest.raises(LazyMoEError) as e:
        merge_to_gguf(given, "F16", tmp_path / "moe", device="cpu")
    assert all(len(str(problem).splitlines()) == 1 and "/tmp/tmp" not in str(problem) for problem in e.value.problems)
    assert told in str(e.value)
    assert not (tmp_path / "moe").exists()


def test_as_typed(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", given)
    assert main(["gguf", "recipe.yaml", "f16,Q8_0", "my-moe-GGUF", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(file["path"]).name for file in told["files"]] == ["my-moe-F16.gguf", "my-moe-Q8_0.gguf"]
    assert main(["gguf", "recipe.yaml", "F16", "--quiet", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "recipe-GGUF/recipe-F16.gguf\n"
    assert main(["merge", "recipe.yaml", "moe", "--gguf", "Q8_0", "--quiet", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "moe/moe-Q8_0.gguf\n"
    assert main(["gguf", "nothing.yaml", "F16"]) == 2
    assert main(["gguf", "recipe.yaml", "F17"]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines()] == ["error:"] * 2


def test_blocks_make_no_difference(given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_to_gguf(given, TYPES, tmp_path / "one" / "moe", device="cpu", threads=1)
    monkeypatch.setattr(lazymoe.output.gguf_rows, "BLOCK", 1 << 13)
    monkeypatch.setattr(lazymoe.output.gguf, "CHUNK", 1 << 10)
    merge_to_gguf(given, TYPES, tmp_path / "two" / "moe", device="cpu", threads=3)
    assert contents(tmp_path / "one" / "moe") == contents(tmp_path / "two" / "moe")
