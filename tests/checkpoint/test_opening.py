"""Sources: a folder, shards, pickles and the Hub all give the same tensors, and little is read or downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file
from small_models import Make, tensors_of

from lazymoe.checkpoint.opening import fetch, open_folder, open_source
from lazymoe.checkpoint.source import Source
from lazymoe.recipe.reference import Reference


def opened(name: str, allow_pickle: bool = False) -> Source:
    return open_source(Reference.parse(name), "base_model", allow_pickle)


def split(folder: Path) -> Path:
    """Cut a model's file into two shards."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:7], names[7:]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def pickle(folder: Path) -> Path:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("change", [lambda folder: folder, split, pickle])
def test_every_layout_gives_the_same_tensors(make: Make, change) -> None:
    folder = make("model")
    expected = tensors_of(folder)
    source = opened(str(change(folder)), allow_pickle=True)
    assert source.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(source.load(name), tensor)
    name = "model.embed_tokens.weight"
    assert torch.equal(source.rows(name, [5, 0]), expected[name][[5, 0]])
    assert torch.equal(source.tensors[name].read(3, 9), expected[name].reshape(-1)[3:9])


def test_safetensors_come_before_pickles(make: Make) -> None:
    folder = make("model")
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    assert opened(str(folder), allow_pickle=True).weights.keys() == {"model.safetensors"}


def test_opening_from_the_hub_downloads_no_weights(make: Make, hub: Hub) -> None:
    folder = split(make("model"))
    expected = tensors_of(folder)
    (folder / "tokenizer.json").write_text("{}")
    for unwanted in ("pytorch_model.bin", "optimizer.pt", "original.safetensors", "consolidated.safetensors"):
        (folder / unwanted).write_bytes(b"x" * 1000)
    commit = hub.add("acme/split", folder)
    hub.requests.clear()
    source = opened("acme/split")
    assert source.revision == commit
    assert source.pinned == f"acme/split@{commit}"
    assert source.missing == source.weights == {p.name: p.stat().st_size for p in folder.glob("model-*")}
    here = open_folder(folder)
    assert repr(source.tensors) == repr(here.tensors) and source.fingerprint == here.fingerprint

    fetch([(source, "base_model")])
    assert not source.missing
    name = "model.norm.weight"
    assert torch.equal(source.load(name), expected[name])
    asked = {re.sub(r".*/", "", r.path) for r in hub.requests}
    assert not asked & {"pytorch_model.bin", "optimizer.pt", "original.safetensors", "consolidated.safetensors"}

    hub.requests.clear()
    fetch([(opened("acme/split"), "base_model")])
    assert not any(r.method == "GET" and "/resolve/" in r.path for r in hub.requests), "it was in the cache"


def test_pickles_on_the_hub_are_downloaded_only_with_permission(make: Make, hub: Hub) -> None:
    hub.add("acme/pickled", pickle(make("model")))
    source = opened("acme/pickled", allow_pickle=True)
    assert not source.missing
    assert len(source.tensors) == 21


def test_a_revision_is_honoured(make: Make, hub: Hub) -> None:
    first = hub.add("acme/two", make("first", seed=1))
    hub.add("acme/two", make("second", seed=2, num_hidden_layers=1))
    assert opened(f"acme/two@{first}").config["num_hidden_layers"] == 2
    assert opened("acme/two").config["num_hidden_layers"] == 1


def test_the_fingerprint_sees_layout_config_and_tokenizer(make: Make) -> None:
    folder = make("model")
    prints = [open_folder(folder).fingerprint]
    (folder / "tokenizer.json").write_text("{}")
    prints.append(open_folder(folder).fingerprint)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    prints.append(open_folder(folder).fingerprint)
    assert len(set(prints)) == 3
    assert prints[-1] == open_folder(folder).fingerprint


def test_a_damaged_config_in_the_cache_is_brought_anew(make: Make, hub: Hub) -> None:
    hub.add("acme/small", make("small", seed=6))
    source = open_source(Reference("acme/small"), "base_model")
    (source.folder / "config.json").resolve().write_text(json.dumps(source.config | {"rms_norm_eps": 0.5}))
    again = open_source(Reference("acme/small"), "base_model")
    assert again.config == source.config and again.fingerprint == source.fingerprint


def test_a_download_that_was_cut_is_not_believed(make: Make, hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/cut", make("cut", seed=5))
    source = open_source(Reference("acme/cut"), "base_model")
    fetch([(source, "base_model")])
    blob = (source.folder / "model.safetensors").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-10])
    fetch([(source, "base_model")])
    assert (source.folder / "model.safetensors").read_bytes() == whole
