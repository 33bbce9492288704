"""A finished mixture in memory: the public function, and what it says to a person."""

from __future__ import annotations

import builtins
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from small_models import Make, configure, recipe

import lazymoe
from lazymoe import LazyMoEError, load, merge
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.forward import loading

PEAK = Path(__file__).parents[2] / "benchmarks" / "load_peak.py"


@pytest.fixture(scope="module")
def mixture(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(demo_recipe(demo_models, domains(), "random"), tmp_path_factory.mktemp("load") / "moe").folder


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_it_talks(bits: Any, mixture: Path) -> None:
    model, tokenizer = load(mixture, bits, device="cpu")
    inputs = tokenizer("def add", return_tensors="pt")
    assert model.generate(**inputs, min_new_tokens=2, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    packed = any(p.dtype == torch.uint8 for p in model.parameters())
    assert packed is bool(bits)
    assert all(not p.requires_grad for p in model.parameters() if p.dtype == torch.uint8)


def test_progress_counts_the_layers(mixture: Path) -> None:
    told: list[tuple[str, int, int]] = []
    model, _ = load(mixture, bits=4, device="cpu", progress=lambda *now: told.append(now))
    layers = model.config.num_hidden_layers
    assert told == [("load", done, layers) for done in range(layers + 1)]


def test_a_folder_may_be_relative(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixture.parent)
    assert load("moe", bits=4, device="cpu")[1].chat_template


def raised(folder: Path, **options: Any) -> str:
    with pytest.raises(LazyMoEError) as caught:
        load(folder, **options)
    [problem] = caught.value.problems
    assert str(problem).isprintable()
    return f"{problem.code} {problem}"


def test_arguments_that_cannot_be_meant(mixture: Path, tmp_path: Path) -> None:
    assert raised(mixture, bits=3) == "input.bits bits: there is no 3 bit. Say 4 or 8, or leave it out."
    assert raised(mixture, device="cudo").startswith("input.device")
    assert raised(tmp_path).startswith("output.unfinished")


def test_without_bitsandbytes_it_says_how_to_get_it(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "input.bitsandbytes bits: 4 and 8 bit need bitsandbytes>=0.50. Run: pip install 'bitsandbytes>=0.50'"
    with monkeypatch.context() as patched:
        patched.setattr(bitsandbytes, "__version__", "0.49.2")
        assert raised(mixture, bits=4) == remedy
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert raised(mixture, bits=4) == remedy


def test_a_full_gpu_is_told_in_one_line(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(loading, "_load", full)
    assert raised(mixture, device="cpu").endswith("has too little memory for it. Load it with bits=4.")
    assert raised(mixture, bits=4, device="cpu").endswith("Load it with device='cpu'.")


def test_what_transformers_cannot_load_is_told_in_one_line(mixture: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(mixture, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    assert raised(broken).startswith("output.damaged") and "can't load it" in raised(broken)


def test_no_code_runs_but_lazymoes_own(make: Make, tmp_path: Path) -> None:
    base = make("base")
    out = merge(recipe(base, base, base, architecture="deepseek"), tmp_path / "moe").folder
    code = (out / "modeling_deepseek.py").read_text()
    (out / "modeling_deepseek.py").write_text(code + "\nraise SystemExit('it ran')\n")
    assert "isn't LazyMoE's own" in raised(out, bits=4)
    (out / "modeling_deepseek.py").write_text(code)
    configure(out, auto_map={"AutoModelForCausalLM": "stranger/repo--modeling_deepseek.X"})
    assert "names other code" in raised(out)


@pytest.mark.slow
def test_loading_takes_little_more_than_what_stays(make: Make, tmp_path: Path, demo_models: Path) -> None:
    """It is packed a layer at a time: there is never the whole in 16 bit."""
    size = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 8}
    base = make("base", **size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_models / "base" / name, base / name)
    made = merge(recipe(base, *[base] * 4), tmp_path / "moe")

    def peak(bits: int) -> int:
        command, given_back = [sys.executable, PEAK, made.folder, str(bits)], {"MALLOC_ARENA_MAX": "1"}
        given_back["MALLOC_MMAP_THRESHOLD_"] = "65536"  # else glibc keeps 100 MB of what was freed, or doesn't
        done = subprocess.run(command, env=os.environ | given_back, capture_output=True, text=True, check=True)
        return int(done.stdout)

    layer = 2 * made.plan.parameters // 8
    packed = peak(4)
    assert packed < made.plan.bytes_4bit * 1.1 + 2 * layer + 150e6
    assert packed < peak(0) * 0.7


def test_it_is_public() -> None:
    assert lazymoe.load is load
