"""Merged straight to the Hub: the same files as by way of a folder, with two files of weights on the disk at most."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import pytest
from crossing import crossed
from hub_server import Hub
from huggingface_hub import constants
from huggingface_hub.utils import _xet
from small_models import Make, contents, recipe, write_recipe

import lazymoe.hub.client
from lazymoe import HubError, LazyMoEError, Recipe, merge, merge_to_hub, publish
from lazymoe.cli import main
from lazymoe.hub.streaming import Stream
from lazymoe.progress import silent
from lazymoe.to_hub import LEFT

SMALL = {"shard_size": 20_000}
STREAMS = hasattr(_xet, "get_xet_session")  # clients of before 1.0 have none


@pytest.fixture
def given(make: Make, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    return recipe(make("base", seed=1), make("a", seed=2), make("b", seed=3), shared_weights="average")


def files(hub: Hub, repo: str) -> dict[str, bytes]:
    """What a repository has, but the card: that names it."""
    return {name: hub.read(repo, name) for name in hub.repos[repo].commits[-1].files if name != "README.md"}


def test_the_files_are_those_of_a_merge_and_a_publication(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    publish(merge(given, tmp_path / "moe", **SMALL).folder, "writer/by-folder", token="hf_writer")
    stored = empty_hub.large_bytes()
    most = 0

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, len(list((tmp_path / "work").rglob("model-*.safetensors"))))

    done = merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", progress=watch, **SMALL)
    assert done.url == f"{empty_hub.url}/writer/straight"
    assert files(empty_hub, "writer/straight") == files(empty_hub, "writer/by-folder")
    assert "writer/straight" in empty_hub.read("writer/straight", "README.md").decode()
    assert len(empty_hub.repos["writer/straight"].commits) == 2  # made, and one that shows everything
    assert 1 <= most <= 2 and not (tmp_path / "work").exists()
    assert empty_hub.large_bytes() == stored  # the Hub had these bytes


@pytest.mark.parametrize(("after", "kept"), crossed([0.1, 0.4, 0.7, 1.0], [True, False]))
def test_it_goes_on_from_the_last_file_that_was_sent(
    after: float, kept: bool, empty_hub: Hub, given: Recipe, tmp_path: Path
) -> None:
    """On another machine, which knows of nothing, all is made again, and what the Hub holds isn't sent again."""

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "write" and done >= after * total:
            raise KeyboardInterrupt

    stored = empty_hub.large_bytes()
    with pytest.raises(KeyboardInterrupt):
        merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", progress=stop, **SMALL)
    assert set(files(empty_hub, "writer/straight")) == {".gitattributes"}  # nothing is shown yet
    merge_to_hub(given, "writer/straight", tmp_path / ("work" if kept else "other"), token="hf_writer", **SMALL)
    weights = sum(len(data) for name, data in files(empty_hub, "writer/straight").items() if "safetensors" in name)
    assert empty_hub.large_bytes() - stored <= weights  # none of them twice
    publish(merge(given, tmp_path / "moe", **SMALL).folder, "writer/by-folder", token="hf_writer")
    assert files(empty_hub, "writer/straight") == files(empty_hub, "writer/by-folder")


def test_what_was_sent_is_told(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    """From the first file on, and to the end; after a stop from where it was."""
    told: list[tuple[int, int]] = []

    def watch(stop: bool, stage: str, done: int, total: int) -> None:
        if stage == "upload":
            told.append((done, total))
        elif stop and stage == "write" and done > total / 2:
            raise KeyboardInterrupt

    there = {"token": "hf_writer", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        merge_to_hub(given, "writer/straight", tmp_path / "work", progress=partial(watch, True), **there)
    assert told[0][0] == 0 and told == sorted(told) and told[-1][0] < told[-1][1]
    wait(LEFT.values())  # what was on its way
    before = sum(json.loads(kept.read_text())["bytes"] for kept in (tmp_path / "work").rglob("*.sent"))
    told.clear()
    merge_to_hub(given, "writer/straight", tmp_path / "work", progress=partial(watch, False), **there)
    assert told[0][0] >= before > 0 and told == sorted(told) and told[-1][0] == told[-1][1]


def test_a_file_goes_up_while_it_is_made_where_xet_can(
    empty_hub: Hub, given: Recipe, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    streamed = STREAMS and request.node.callspec.params["empty_hub"] == "xet"
    told: list[tuple[str, int, int]] = []

    def watch(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if stage == "sweep":  # a layer is there: what of it goes up has gone
            wait(LEFT.values(), 60)

    merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", progress=watch)
    layers = [at for at, (stage, *_) in enumerate(told) if stage == "sweep"]
    whole = next(at for at, (stage, done, total) in enumerate(told) if stage == "write" and done == total)
    before = max(done for stage, done, _ in told[layers[0] : whole] if stage == "upload")
    assert (before > 0) == streamed
    uploads = [done for stage, done, _ in told if stage == "upload"]
    assert uploads == sorted(uploads) and uploads[-1] == told[-1][2]
    publish(merge(given, tmp_path / "moe").folder, "writer/by-folder", token="hf_writer")
    assert files(empty_hub, "writer/straight") == files(empty_hub, "writer/by-folder")


@pytest.mark.skipif(not STREAMS, reason="this client has no streams")
@pytest.mark.parametrize("call", ["send", "finish"])
def test_a_stream_that_fails_is_made_up_for(
    call: str, clean_hub: Hub, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def fail(self: Stream, *_: object) -> None:
        failed.append(self.nbytes)
        raise RuntimeError("as Xet's do")

    monkeypatch.setattr(Stream, call, fail)
    merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL)
    publish(merge(given, tmp_path / "moe", **SMALL).folder, "writer/by-folder", token="hf_writer")
    assert failed and files(clean_hub, "writer/straight") == files(clean_hub, "writer/by-folder")


def test_what_fails_at_the_hub_loses_nothing(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    empty_hub.fault("POST .*/commit/", 503, math.inf, 0)
    with pytest.raises(HubError):
        merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL)
    assert (tmp_path / "work" / ".lazymoe" / "lazymoe.json").is_file()
    empty_hub.faults.clear()
    merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL)
    assert "config.json" in files(empty_hub, "writer/straight") and not (tmp_path / "work").exists()


FAULTS = {  # what is asked for, the kind of fault, how often, the line if it lasts
    "a part, 503": ("PUT ", 503, 2, ""),
    "a part, cut": ("PUT ", "cut", 2, ""),
    "where to, 429": ("POST .*/preupload/", 429, 2, ""),
    "the commit, 503": ("POST .*/commit/", 503, 2, ""),
    "the commit, cut": ("POST .*/commit/", "cut", 1, ""),
    "parts for good, 503": ("PUT ", 503, math.inf, "Hub"),
    "revoked among the files": ("POST .*(preupload|batch)", 401, math.inf, "token"),
    "revoked at the end": ("POST .*/commit/", 401, math.inf, "token"),
}
WAITED = {"parts for good, 503"}  # the client tries again for long


@pytest.mark.parametrize(
    ("where", "kind", "times", "line"),
    [pytest.param(*fault, id=name, marks=[pytest.mark.slow] * (name in WAITED)) for name, fault in FAULTS.items()],
)
def test_it_completes_or_stops_with_a_line_and_completes(
    where: str, kind: int | str, times: float, line: str, empty_hub: Hub, given: Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    seed = len(empty_hub.requests)  # other bytes each time, or the Hub would have them
    there = {"token": "hf_writer", "seed": seed, **SMALL}

    def break_it(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total // 2 and not empty_hub.faults:
            empty_hub.fault(where, kind, times, 0)

    asked = given.with_experts([expert.model_copy(update={"noise_scale": 0.1}) for expert in given.experts])
    if line:
        with pytest.raises(LazyMoEError, match=line) as told:
            merge_to_hub(asked, "writer/moe", tmp_path / "work", progress=break_it, **there)
        assert "\n" not in str(told.value)
        assert set(files(empty_hub, "writer/moe")) <= {".gitattributes"}
        empty_hub.faults.clear()
    merge_to_hub(asked, "writer/moe", tmp_path / "work", progress=silent if line else break_it, **there)
    empty_hub.faults.clear()
    publish(merge(asked, tmp_path / "moe", seed=seed, **SMALL).folder, "writer/by-folder", token="hf_writer")
    assert files(empty_hub, "writer/moe") == files(empty_hub, "writer/by-folder")


def test_a_card_that_cannot_be_rendered_loses_nothing(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("{{ nothing.at.all }}")
    there = {"token": "hf_writer", **SMALL}
    with pytest.raises(LazyMoEError, match="template"):
        merge_to_hub(given, "writer/straight", tmp_path / "work", template=tmp_path / "bad.md", **there)
    assert list((tmp_path / "work").rglob("*.sent"))
    merge_to_hub(given, "writer/straight", tmp_path / "work", **there)
    assert "config.json" in files(empty_hub, "writer/straight")


def test_what_is_there_already_is_left_alone(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL)
    commits = len(empty_hub.repos["writer/straight"].commits)
    assert merge_to_hub(given, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL).sent == 0
    assert len(empty_hub.repos["writer/straight"].commits) == commits and not (tmp_path / "work").exists()
    changed = given.with_fields(experts_per_token=1)
    merge_to_hub(changed, "writer/straight", tmp_path / "work", token="hf_writer", **SMALL)
    assert b'"num_experts_per_tok": 1' in empty_hub.read("writer/straight", "config.json")


def test_a_finished_folder_is_published(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe", **SMALL).folder
    before = contents(moe)
    merge_to_hub(given, "writer/straight", moe, token="hf_writer", **SMALL)
    assert contents(moe) == before and "config.json" in files(empty_hub, "writer/straight")


def test_the_right_to_write_is_looked_at_first(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    for token, words in (("hf_reader", "it may only read"), ("hf_you", "'writer' is not you")):
        with pytest.raises(LazyMoEError, match=words):
            merge_to_hub(given, "writer/straight", tmp_path / "work", token=token, **SMALL)
    assert not (tmp_path / "work").exists()


def test_on_the_command_line(
    empty_hub: Hub, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    write_recipe(tmp_path / "recipe.yaml", given)
    assert main(["merge", "recipe.yaml", "--to", "writer/straight", "--shard-size", "20kB"]) == 0
    assert f"{empty_hub.url}/writer/straight holds it." in capsys.readouterr().out
    assert not (tmp_path / "straight").exists()
    assert main(["merge", "recipe.yaml"]) == 2 and "Name a folder" in capsys.readouterr().err


def test_the_clients_own_bars_are_not_shown(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", given)
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_writer"}
    command = [sys.executable, "-m", "lazymoe", "merge", "recipe.yaml", "--to", "writer/straight", "--shard-size=20kB"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Uploading: 100%" in done.stderr
    assert "model-0000" not in done.stderr
