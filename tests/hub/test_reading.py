"""Reading from the Hub: ranges without a download, faults on the way, and what the cache is good for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from crossing import crossed
from hub_server import Hub
from small_models import Make, recipe, write_recipe

import lazymoe.hub.client
from lazymoe import HubError
from lazymoe.hub.downloading import Wanted, download
from lazymoe.hub.reading import find_model, open_dataset, open_dataset_file

WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def model(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A model on the Hub by a name that no other test's cache has."""
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    name = f"acme/{tmp_path.name.strip('_.-')}"
    hub.add(name, tmp_path)
    hub.requests.clear()
    yield name
    hub.faults.clear()


def test_a_model_is_found_with_its_small_files(model: str, hub: Hub) -> None:
    found = find_model(model, None, "base_model", ["*.json"])
    assert found.commit == hub.repos[model].commits[-1].oid
    assert found.sizes["model.safetensors"] == len(WEIGHTS)
    assert (found.folder / "config.json").is_file() and not (found.folder / "model.safetensors").exists()
    assert found.ranges and found.ranges.read("model.safetensors", 300, 5) == WEIGHTS[300:305]
    assert not (found.folder / "model.safetensors").exists()
    download([Wanted(found, "model.safetensors", "base_model")])
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("where", "kind"),
    crossed(["GET /api/models/", "/resolve/.*/config.json", "GET .*/resolve/.*/model.safe"], [429, 503, "cut"]),
)
def test_a_passing_fault_is_retried_everywhere(model: str, hub: Hub, where: str, kind: int | str) -> None:
    fault = hub.fault(where, kind, times=2, seconds=0)
    found = find_model(model, None, "base_model", ["*.json"])
    assert found.ranges and found.ranges.read("model.safetensors", 0, 10) == WEIGHTS[:10]
    download([Wanted(found, "model.safetensors", "base_model")])
    assert fault.times == 0
    assert (found.folder / "config.json").read_text() == "{}"
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_lasting_fault_names_the_place(model: str, hub: Hub) -> None:
    hub.fault("GET /api/models/", 503, times=math.inf, seconds=0)
    with pytest.raises(HubError, match=rf"^experts\[1\]: the Hub keeps answering '{model}' with status 503") as caught:
        find_model(model, None, "experts[1]", ["*.json"])
    assert caught.value.problems[0].failed


@pytest.mark.parametrize("offline", ["by wish", "by accident"])
def test_without_a_network_the_cache_is_good_enough(
    model: str, hub: Hub, offline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_model(model, None, "base_model", ["*.json"])
    download([Wanted(first, "model.safetensors", "base_model")])
    if offline == "by wish":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        hub.fault(".*", "cut", times=math.inf)
    found = find_model(model, None, "base_model", ["*.json"])
    assert (found.folder, found.commit) == (first.folder, first.commit)
    assert found.sizes == {"config.json": 2, "model.safetensors": len(WEIGHTS)}
    with pytest.raises(HubError, match="'acme/never-seen' isn't in the cache and the Hub can't be reached"):
        find_model("acme/never-seen", None, "base_model", ["*.json"])


def test_a_file_of_a_data_set_is_read_as_far_as_is_asked(hub: Hub, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(2_000_000 // 20))
    (tmp_path / "train.jsonl").write_text(rows)
    hub.add("acme/rows", tmp_path)
    commit, names = open_dataset("acme/rows", None, "experts[0]")
    assert commit == hub.repos["acme/rows"].commits[-1].oid and "train.jsonl" in names
    with open_dataset_file("acme/rows", commit, "train.jsonl", "experts[0]") as f:
        assert json.loads(f.readline()) == {"text": "row 0"}
    with pytest.raises(HubError) as caught:
        open_dataset("acme/no-rows", None, "experts[0]")
    assert caught.value.problems[0].code == "hub.not-found" and "data set" in str(caught.value)


def test_the_clients_own_bars_do_not_show(hub: Hub, make: Make, tmp_path: Path) -> None:
    hub.add("acme/barred", make("barred"))
    write_recipe(tmp_path / "recipe.yaml", recipe("acme/barred", "acme/barred", "acme/barred"))
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    command = [sys.executable, "-m", "lazymoe", "check", "recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
