"""Merges: interrupted anywhere, a rerun gives the same bytes; nothing half-made looks whole; nothing is overwritten."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from small_models import Make, contents, recipe, tensors_of, write_recipe
from transformers import AutoModelForCausalLM

from lazymoe import LazyMoEError, Recipe, merge
from lazymoe.output.folder import WORK

SMALL_SHARDS = {"shard_size": 20_000}


@pytest.fixture
def given(make: Make) -> Recipe:
    return recipe(make("base", seed=1), make("a", seed=2), make("b", seed=3), make("c", seed=4))


def test_same_inputs_same_bytes_wherever_they_lie(given: Recipe, tmp_path: Path) -> None:
    merge(given, tmp_path / "one")
    moved = shutil.copytree(tmp_path / "base", tmp_path / "elsewhere" / "base").parent
    for name in ("a", "b", "c"):
        shutil.copytree(tmp_path / name, moved / name)
    merge(recipe(moved / "base", *(moved / n for n in "abc")), moved / "two")
    one, two = contents(tmp_path / "one"), contents(moved / "two")
    for name in ("recipe.yaml", "lazymoe.json"):  # these name the paths
        one.pop(name), two.pop(name)
    assert one == two


@pytest.mark.parametrize("attempt", range(10))
def test_killed_anywhere_a_rerun_gives_the_same_bytes(attempt: int, make: Make, tmp_path: Path) -> None:
    base = make("base", hidden_size=256, intermediate_size=4096, num_hidden_layers=4)
    given = recipe(base, *(make(f"expert-{i}", seed=i, hidden_size=256, intermediate_size=4096, num_hidden_layers=4)
                           for i in range(3)), dtype="float32")  # fmt: skip
    options = {"shard_size": 30_000_000}
    size = merge(given, tmp_path / "whole", **options).plan.nbytes
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "lazymoe", "merge", str(write_recipe(tmp_path / "r.yaml", given)), str(out)]
    process = subprocess.Popen([*command, "--shard-size", "30MB"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    threshold = random.Random(attempt).random() * size
    while process.poll() is None and _size(out) < threshold:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (out / "config.json").exists() is False:
        with pytest.raises((OSError, ValueError)):
            AutoModelForCausalLM.from_pretrained(out)
    merge(given, out, **options)
    assert contents(out) == contents(tmp_path / "whole")


def _size(folder: Path) -> int:
    """Bytes of shards in a folder that somebody else is writing to."""
    try:
        return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    except FileNotFoundError:  # renamed while we looked
        return 0


def test_complete_shards_are_not_written_again(given: Recipe, tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(given, tmp_path / "moe", progress=stop, **SMALL_SHARDS)
    kept = {p.name: p.stat().st_ino for p in (tmp_path / "moe").glob("model-*")}
    assert kept
    assert not (tmp_path / "moe" / "config.json").exists()
    merge(given, tmp_path / "moe", **SMALL_SHARDS)
    now = {p.name: p.stat().st_ino for p in (tmp_path / "moe").glob("model-*")}
    assert kept.items() < now.items()
    assert not (tmp_path / "moe" / WORK).exists()
    merge(given, tmp_path / "whole", **SMALL_SHARDS)
    assert contents(tmp_path / "moe") == contents(tmp_path / "whole")


def test_a_finished_merge_is_left_alone(given: Recipe, tmp_path: Path) -> None:
    merge(given, tmp_path / "moe")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "moe").iterdir()}
    merge(given, tmp_path / "moe")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "moe").iterdir()} == times


@pytest.mark.parametrize("change", [{"seed": 1}, {"shard_size": 30_000}])
def test_another_merge_is_never_overwritten(given: Recipe, tmp_path: Path, change: dict) -> None:
    merge(given, tmp_path / "moe", **SMALL_SHARDS)
    before = contents(tmp_path / "moe")
    with pytest.raises(LazyMoEError, match="another merge"):
        merge(given, tmp_path / "moe", **{**SMALL_SHARDS, **change})
    assert contents(tmp_path / "moe") == before


def test_an_expert_that_changed_meanwhile_is_noticed(given: Recipe, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(given, tmp_path / "moe", progress=stop)
    retrained = {name: t + 1 for name, t in tensors_of(tmp_path / "a").items()}
    save_file(retrained, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    os.utime(tmp_path / "a" / "model.safetensors")
    with pytest.raises(LazyMoEError, match="has changed since"):
        merge(given, tmp_path / "moe")


def test_a_full_disk_keeps_what_is_complete(given: Recipe, tmp_path: Path) -> None:
    """The kernel itself refuses: no file may grow over a limit that the second shard exceeds."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from lazymoe.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (22_000, 22_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    given = given.model_copy(update={"dtype": "bfloat16"})
    file = write_recipe(tmp_path / "r.yaml", given)
    command = [sys.executable, "-c", script, "merge", str(file), str(tmp_path / "moe"), "--shard-size", "25000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "the merge stopped: File too large" in done.stderr
    assert "it goes on from the last complete file" in done.stderr
    merge(given, tmp_path / "moe", shard_size=25_000)
    merge(given, tmp_path / "whole", shard_size=25_000)
    assert contents(tmp_path / "moe") == contents(tmp_path / "whole")


def test_small_files_are_the_bases_to_the_byte(given: Recipe, tmp_path: Path) -> None:
    files = {
        "tokenizer.json": '{"odd":   "spacing"}',
        "chat_template.jinja": "{{ messages }}\n",
        "generation_config.json": '{"eos_token_id": [2, 3]}',
        "additional_chat_templates/tool.jinja": "x",
        "tokenizer_config.json": '{"tokenizer_class":  "TokenizersBackend",\n "x": 1}',
    }
    for name, text in files.items():
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(text)
    (tmp_path / "base" / "optimizer.pt").write_text("not this")
    merge(given, tmp_path / "moe")
    files["tokenizer_config.json"] = (
        '{"tokenizer_class":  "PreTrainedTokenizerFast",\n'
        '  "model_input_names": ["input_ids", "attention_mask"],\n "x": 1}'
    )
    assert {name: (tmp_path / "moe" / name).read_text() for name in files} == files
    assert not (tmp_path / "moe" / "optimizer.pt").exists()


def test_the_output_carries_a_recipe_that_makes_it_again(make: Make, tmp_path: Path, hub) -> None:
    for i, name in enumerate(("acme/x", "acme/y")):
        hub.add(name, make(f"model-{i}", seed=i))
    merge(recipe("acme/x", "acme/x", "acme/y"), tmp_path / "moe")
    kept = Recipe.from_file(tmp_path / "moe" / "recipe.yaml")
    assert all(len(name.partition("@")[2]) == 40 for _, name in kept.models)
    merge(kept, tmp_path / "again")
    for file in (tmp_path / "moe").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    index = json.loads((tmp_path / "moe" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(tmp_path / "moe").keys()
