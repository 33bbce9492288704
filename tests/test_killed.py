"""Killed at any moment of a merge from the Hub, of a publication, or of both at once: a rerun gives the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from small_models import contents, make_model, write_recipe

from lazymoe import Recipe, merge, publish

MOMENTS = 16  # of a merge, and as many of a publication
STRAIGHT = 20  # of a merge from Hub to Hub
KILLED = """
import os, signal, sys
from lazymoe.cli import main
left = [int(sys.argv[1])]

def count(event, arguments):  # files opened and named, connections made: whatever leaves a trace
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "socket.connect"):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
code = main(sys.argv[2:])
print(-left[0])
sys.exit(code)
"""


def run(n: int, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is killed at its nth trace, if there are as many."""
    command = [sys.executable, "-c", KILLED, str(n), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


@pytest.fixture
def models(hub: Hub, demo_models: Path, tmp_path: Path) -> Iterator[Path]:
    """A recipe's file, of models on the Hub that no cache has, with all that is computed by default."""
    names = [f"acme/killed-{i}" for i in range(3)]
    for i, name in enumerate(names):
        folder = make_model(tmp_path, f"model-{i}", seed=i, vocab_size=512)
        for file in (demo_models / "base").glob("token*"):
            shutil.copy(file, folder)
        hub.add(name, folder)
    experts = [{"source_model": name, "positive_prompts": [f"The words of {name}"]} for name in names[1:]]
    yield write_recipe(tmp_path / "recipe.yaml", Recipe.model_validate({"base_model": names[0], "experts": experts}))


@pytest.mark.slow
def test_killed_in_a_merge_from_the_hub(models: Path, tmp_path: Path) -> None:
    whole = contents(merge(models, tmp_path / "whole", shard_size=30_000).folder)
    undisturbed = run(
        0, "merge", models, tmp_path / "counted", "--shard-size", "30kB", HF_HUB_CACHE=str(tmp_path / "c")
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    traces = int(undisturbed.stdout.split()[-1])
    for i in range(MOMENTS):
        cache, out = tmp_path / f"cache-{i}", tmp_path / f"moe-{i}"
        arguments = ("merge", models, out, "--shard-size", "30kB")
        killed = run(traces * (i + 1) // (MOMENTS + 1), *arguments, HF_HUB_CACHE=str(cache))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = run(0, *arguments, HF_HUB_CACHE=str(cache))
        assert again.returncode == 0, again.stderr
        assert contents(out) == whole
        # of weights nothing half-made stays; of a config of some hundred bytes the client itself may leave a piece
        assert not [path for path in cache.rglob("*.incomplete") if len(path.name.split(".")[0]) == 64]


@pytest.mark.slow
def test_killed_in_a_publication(models: Path, hub: Hub, tmp_path: Path) -> None:
    moe = merge(models, tmp_path / "moe", shard_size=30_000).folder
    publish(moe, "writer/undisturbed", token="hf_writer")
    wanted = hub.repos["writer/undisturbed"].commits[-1].files
    counted = run(0, "publish", moe, "writer/counted", HF_TOKEN="hf_writer")
    assert counted.returncode == 0, counted.stderr
    traces = int(counted.stdout.split()[-1])
    for i in range(MOMENTS):
        name = f"writer/killed-{i}"
        killed = run(traces * (i + 1) // (MOMENTS + 1), "publish", moe, name, HF_TOKEN="hf_writer")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = hub.repos[name].commits[-1].files if name in hub.repos else {}
        assert set(there) <= {".gitattributes"} or set(there) == set(wanted)  # all of it, or nothing
        again = run(0, "publish", moe, name, HF_TOKEN="hf_writer")
        assert again.returncode == 0, again.stderr
        files = hub.repos[name].commits[-1].files
        assert {k: f for k, f in files.items() if k != "README.md"} == {
            k: f for k, f in wanted.items() if k != "README.md"
        }  # the card names the repository


@pytest.mark.slow
def test_killed_between_hub_and_hub(models: Path, hub: Hub, tmp_path: Path) -> None:
    command = ("merge", models, "--shard-size", "30kB", "--source", "remote", "--to")
    counted = run(0, *command, "writer/whole", tmp_path / "counted", HF_TOKEN="hf_writer")
    assert counted.returncode == 0, counted.stderr
    traces, wanted = int(counted.stdout.split()[-1]), hub.repos["writer/whole"].commits[-1].files
    for i in range(STRAIGHT):
        name, work = f"writer/straight-{i}", tmp_path / f"work-{i}"
        killed = run(traces * (i + 1) // (STRAIGHT + 1), *command, name, work, HF_TOKEN="hf_writer")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = hub.repos[name].commits[-1].files if name in hub.repos else {}
        assert set(there) <= {".gitattributes"} or set(there) == set(wanted)  # all of it, or nothing
        if i % 4 == 3:  # as in a new runtime
            shutil.rmtree(work, ignore_errors=True)
        again = run(0, *command, name, work, HF_TOKEN="hf_writer")
        assert again.returncode == 0, again.stderr
        files = hub.repos[name].commits[-1].files
        assert {k: f for k, f in files.items() if k != "README.md"} == {
            k: f for k, f in wanted.items() if k != "README.md"
        }


@pytest.mark.slow
def test_killed_on_the_way_to_gguf(models: Path, tmp_path: Path) -> None:
    command = ("gguf", models, "Q4_K_M,F16")
    counted = run(0, *command, tmp_path / "counted" / "moe-GGUF")
    assert counted.returncode == 0, counted.stderr
    traces, wanted = int(counted.stdout.split()[-1]), visible(tmp_path / "counted" / "moe-GGUF")
    assert {"moe-F16.gguf", "moe-Q4_K_M.gguf", "moe.imatrix.gguf", "report.json"} < wanted.keys()
    for i in range(MOMENTS):
        out = tmp_path / f"{i}" / "moe-GGUF"
        killed = run(traces * (i + 1) // (MOMENTS + 1), *command, out)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = visible(out) if out.exists() else {}
        assert all(wanted[name] == data for name, data in there.items())  # what has its name is whole
        again = run(0, *command, out)
        assert again.returncode == 0, again.stderr
        assert visible(out) == wanted


def visible(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what is in folders of it."""
    return {name: data for name, data in contents(folder).items() if "/" not in name and not name.startswith(".")}


@pytest.mark.slow
def test_killed_between_recipe_and_gguf_on_the_hub(models: Path, hub: Hub, tmp_path: Path) -> None:
    command = ("merge", models, "--gguf", "Q4_K_M,F16", "--to")
    counted = run(0, *command, "writer/counted-GGUF", tmp_path / "moe-GGUF", HF_TOKEN="hf_writer")
    assert counted.returncode == 0, counted.stderr
    traces, wanted = int(counted.stdout.split()[-1]), hub.repos["writer/counted-GGUF"].commits[-1].files
    for i in range(MOMENTS):
        name, work = f"writer/killed-{i}-GGUF", tmp_path / f"{i}" / "moe-GGUF"
        killed = run(traces * (i + 1) // (MOMENTS + 1), *command, name, work, HF_TOKEN="hf_writer")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = hub.repos[name].commits[-1].files if name in hub.repos else {}
        assert set(there) <= {".gitattributes"} or set(there) == set(wanted)  # all of it, or nothing
        again = run(0, *command, name, work, HF_TOKEN="hf_writer")
        assert again.returncode == 0, again.stderr
        files = hub.repos[name].commits[-1].files
        assert {k: f for k, f in files.items() if k != "README.md"} == {
            k: f for k, f in wanted.items() if k != "README.md"
        }
        assert not work.exists() or not list(work.glob("*.gguf"))
