"""Merges: interrupted anywhere, a rerun gives the same bytes; nothing half-made looks whole; nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from small_models import Make, contents, make_model, recipe, tensors_of, write_recipe
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


KILLED = """
import os, signal, sys
from lazymoe import merge
recipe, out, how, n, shard_size = sys.argv[1:]
left = [int(n)]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def wrote(stage, done, total):
    if how == "bytes" and stage == "write" and done >= left[0]:
        die()

def renamed(event, arguments):
    if how == "files" and event == "os.rename":  # whatever is whole is given its name so
        left[0] -= 1
        if left[0] < 0:
            die()

sys.addaudithook(renamed)
merge(recipe, out, shard_size=int(shard_size), progress=wrote)
"""


def kill(given: Recipe, out: Path, how: str, n: int, shard_size: int) -> None:
    """Begin a merge that is killed when so many bytes are written, or as it gives the file after n others its name."""
    file = write_recipe(out.with_suffix(".yaml"), given)
    command = [sys.executable, "-c", KILLED, str(file), str(out), how, str(n), str(shard_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(out)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe whose shards take several steps each, and what it makes."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 256, "intermediate_size": 4096}
    base, *experts = (make_model(folder, f"model-{i}", seed=i, **sizes) for i in range(3))
    given = recipe(base, *experts, dtype="float32")
    merge(given, folder / "whole", shard_size=20_000_000)
    return given, folder / "whole"


@pytest.mark.parametrize(
    "part", [0, 0.3, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (0.1, 0.5, 0.7, 0.9))]
)
def test_killed_while_it_writes_a_rerun_gives_the_same_bytes(
    part: float, large: tuple[Recipe, Path], tmp_path: Path
) -> None:
    given, whole = large
    nbytes = json.loads((whole / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    kill(given, tmp_path / "killed", "bytes", int(part * nbytes), 20_000_000)
    merge(given, tmp_path / "killed", shard_size=20_000_000)
    assert contents(tmp_path / "killed") == contents(whole)


def test_killed_before_any_file_has_its_name_a_rerun_gives_the_same_bytes(given: Recipe, tmp_path: Path) -> None:
    merge(given, tmp_path / "whole", **SMALL_SHARDS)
    whole = contents(tmp_path / "whole")
    shards = sum(name.endswith(".safetensors") for name in whole)
    renamed = len(whole) + shards + 3  # files, seals of weights; the merge's record, its routers and their seal
    for n in range(renamed):
        kill(given, tmp_path / f"killed-{n}", "files", n, SMALL_SHARDS["shard_size"])
        merge(given, tmp_path / f"killed-{n}", **SMALL_SHARDS)
        assert contents(tmp_path / f"killed-{n}") == whole


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
    assert done.returncode == 1, done.stderr
    assert "the merge stopped: File too large" in done.stderr
    assert "it goes on from there" in done.stderr
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
    assert all(len(reference.revision or "") == 40 for _, reference in kept.models)
    merge(kept, tmp_path / "again")
    for file in (tmp_path / "moe").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    index = json.loads((tmp_path / "moe" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(tmp_path / "moe").keys()
