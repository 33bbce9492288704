"""From a recipe to GGUF files on the Hub: the files of a folder, with their card, and nothing half-made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hub_server import Hub
from small_models import recipe, write_recipe
from test_exporting import Killed, killed

import lazymoe.hub.client
from lazymoe import LazyMoEError, Recipe, merge_gguf_to_hub, merge_to_gguf
from lazymoe.cli import main

REPO, TYPES = "writer/moe-GGUF", "Q8_0,Q4_K_M"
PROMPTS = ("The sea was calm, and the wind had died down.", "def add(a, b):\n    return a + b")


@pytest.fixture
def given(demo_models: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    asked = recipe(*(demo_models / name for name in ("base", "python", "english")), gate_mode="fit")
    every = [e.model_copy(update={"positive_prompts": [p]}) for e, p in zip(asked.experts, PROMPTS, strict=True)]
    return asked.with_experts(every)


def there(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    return {name: hub.read(repo, name) for name in hub.repos[repo].commits[-1].files if name != ".gitattributes"}


def test_the_files_are_those_of_a_folder(empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    merge_to_gguf(given, TYPES, tmp_path / "moe-GGUF", device="cpu")
    done = merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "work" / "moe-GGUF", device="cpu")
    found = there(empty_hub)
    weights = {path.name: path.read_bytes() for path in (tmp_path / "moe-GGUF").glob("*.gguf")}
    assert {name: data for name, data in found.items() if name.endswith(".gguf")} == weights
    assert set(weights) == {"moe-Q8_0.gguf", "moe-Q4_K_M.gguf", "moe.imatrix.gguf"}
    assert set(found) - weights.keys() == {"README.md", "gguf.json", "recipe.yaml"}
    assert done.sent == sum(map(len, weights.values()))
    card = found["README.md"].decode()
    assert "ollama run hf.co/writer/moe-GGUF:Q4_K_M" in card and "moe-Q8_0.gguf" in card
    assert not list((tmp_path / "work").iterdir())
    assert not any(name.endswith(".safetensors") for name in found)
    commits = len(empty_hub.repos[REPO].commits)
    again = merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "work" / "moe-GGUF", device="cpu")
    assert again.sent == 0 and len(empty_hub.repos[REPO].commits) == commits and not list((tmp_path / "work").iterdir())


def test_a_type_that_is_not_there_yet_is_added(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    merge_gguf_to_hub(given, "Q8_0", REPO, tmp_path / "moe-GGUF", device="cpu")
    merge_gguf_to_hub(given, "Q4_K_M", REPO, tmp_path / "moe-GGUF", device="cpu")
    assert {"moe-Q8_0.gguf", "moe-Q4_K_M.gguf"} <= there(clean_hub).keys()
    assert set(json.loads(there(clean_hub)["gguf.json"])["files"]) == {"Q8_0", "Q4_K_M"}


@pytest.mark.parametrize("stage", ["quantize", "upload"])
def test_it_goes_on_where_it_was_stopped(stage: str, empty_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    def stop(at: str, done: int, total: int) -> None:
        if at == stage and done > total / 3:
            raise Killed

    stored = empty_hub.large_bytes()
    with pytest.raises(Killed):
        merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "moe-GGUF", device="cpu", progress=stop)
    assert not there(empty_hub)  # nothing is shown yet
    merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "moe-GGUF", device="cpu")
    weights = sum(len(data) for name, data in there(empty_hub).items() if name.endswith(".gguf"))
    assert empty_hub.large_bytes() - stored <= weights  # none of them twice
    assert not (tmp_path / "moe-GGUF").exists()
    merge_to_gguf(given, TYPES, tmp_path / "own" / "moe-GGUF", device="cpu")
    for path in (tmp_path / "own" / "moe-GGUF").glob("*.gguf"):
        assert there(empty_hub)[path.name] == path.read_bytes()


def test_what_fails_at_the_hub_loses_nothing(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    clean_hub.fault("POST .*/commit/", 503, math.inf, 0)
    with pytest.raises(LazyMoEError):
        merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "moe-GGUF", device="cpu")
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "moe-GGUF").glob("*.gguf")}
    assert len(made) == 3 and not there(clean_hub)
    clean_hub.faults.clear()
    stages = set[str]()
    merge_gguf_to_hub(
        given, TYPES, REPO, tmp_path / "moe-GGUF", device="cpu", progress=lambda stage, *_: stages.add(stage)
    )
    assert stages == {"upload"} and "moe-Q8_0.gguf" in there(clean_hub)
    assert not (tmp_path / "moe-GGUF").exists()


def test_files_that_were_there_before_stay(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    merge_to_gguf(given, "Q8_0", tmp_path / "moe-GGUF", device="cpu")
    merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "moe-GGUF", device="cpu")
    assert (tmp_path / "moe-GGUF" / "moe-Q8_0.gguf").is_file()
    assert "moe-Q4_K_M.gguf" in there(clean_hub)


def test_the_right_to_write_is_looked_at_first(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    for token, words in (("hf_reader", "it may only read"), ("hf_you", "'writer' is not you")):
        with pytest.raises(LazyMoEError, match=words):
            merge_gguf_to_hub(given, TYPES, REPO, tmp_path / "moe-GGUF", token=token, device="cpu")
    assert not (tmp_path / "moe-GGUF").exists() and REPO not in clean_hub.repos


def test_nothing_is_made_there_of_what_llama_cpp_has_not(clean_hub: Hub, given: Recipe, tmp_path: Path) -> None:
    with pytest.raises(LazyMoEError, match=r"llama\.cpp doesn't compute deepseek"):
        merge_gguf_to_hub(given.with_fields(architecture="deepseek"), TYPES, REPO, tmp_path / "moe-GGUF", device="cpu")
    assert REPO not in clean_hub.repos and not (tmp_path / "moe-GGUF").exists()


def test_on_the_command_line(
    clean_hub: Hub, given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", given)
    assert main(["merge", "recipe.yaml", "--to", REPO, "--gguf", "q8_0", "--device", "cpu"]) == 0
    assert f"{clean_hub.url}/{REPO} holds them." in capsys.readouterr().out
    assert "moe-Q8_0.gguf" in there(clean_hub) and not (tmp_path / "moe-GGUF").exists()
    assert main(["gguf", "recipe.yaml", "Q8_0", "--to", REPO, "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr() == (f"{clean_hub.url}/{REPO}\n", "")  # they are there
    with pytest.raises(Killed):
        merge_gguf_to_hub(given, "F16", REPO, tmp_path / "moe-GGUF", device="cpu", progress=killed(0.5))
    assert main(["merge", "recipe.yaml", "--to", REPO, "--gguf", "F16", "--device", "cpu", "--quiet"]) == 0
    assert "moe-F16.gguf" in there(clean_hub)
