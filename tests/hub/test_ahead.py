"""Reading ahead: what a layer took is there when the next one wants it, and no more is held than was allowed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file

from lazymoe.checkpoint.opening import open_source
from lazymoe.checkpoint.safetensors import Stored
from lazymoe.hub import ahead
from lazymoe.hub.ahead import Ahead
from lazymoe.hub.ranges import Ranges
from lazymoe.recipe.reference import Reference

LAYERS, PARTS = 4, ("a", "b", "c")
NBYTES = 4000  # of each tensor
NAMES = [f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in PARTS]


@pytest.fixture
def model(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranges:
    monkeypatch.setattr(ahead, "BLOCK", 1000)
    (tmp_path / "files").mkdir()
    tensors = {name: torch.full((NBYTES,), i, dtype=torch.uint8) for i, name in enumerate([*NAMES, "never.read"])}
    save_file(tensors, tmp_path / "files" / "model.safetensors")
    (tmp_path / "files" / "config.json").write_text("{}")
    name = f"acme/{tmp_path.name.strip('_.-')}"
    clean_hub.add(name, tmp_path / "files")
    origin = open_source(Reference(name), "base_model").origin
    assert origin and origin.ranges
    return origin.ranges


def take(model: Ranges, name: str) -> None:
    file, begin, end = model.places[name]
    assert bytes(model.read(file, begin, end - begin)) == bytes([NAMES.index(name)]) * NBYTES


def brought(reading: Ahead, model: Ranges) -> list[str]:
    """The tensors that are here or on their way."""
    found = [model.tensor(block.place.file, block.place.begin) for block in reading._held]
    return [name for name in NAMES if found.count(name) == NBYTES // 1000]


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_next_layer_is_on_its_way(on_disk: bool, model: Ranges, tmp_path: Path) -> None:
    folder = tmp_path / "held" if on_disk else None
    with Ahead([model], folder, 100 * NBYTES, len(NAMES) * NBYTES, lambda *_: None) as reading:
        order = [1, 0, 2]  # any will do
        for part in order:
            take(model, NAMES[part])
        assert brought(reading, model) == NAMES[:3]  # nothing is known yet
        take(model, NAMES[3 + order[0]])
        assert brought(reading, model) == NAMES[:9]  # the rest of its layer, and the next one
        for part in order[1:]:
            take(model, NAMES[3 + part])
        take(model, NAMES[6 + order[0]])
        assert brought(reading, model) == NAMES  # and not what was never read
        assert folder is None or list(folder.iterdir())
    assert model.reader is None and not (tmp_path / "held").exists()


@pytest.mark.parametrize("on_disk", [True, False])
def test_no_more_is_held_than_there_is_room_for(on_disk: bool, model: Ranges, clean_hub: Hub, tmp_path: Path) -> None:
    folder, told = tmp_path / "held" if on_disk else None, []
    clean_hub.sent = Counter()
    with Ahead([model], folder, 3 * NBYTES, len(NAMES) * NBYTES, lambda *p: told.append(p)) as reading:
        for name in NAMES:
            take(model, name)
            take(model, name)  # again at once: it is still here
            assert reading._nbytes <= 3 * NBYTES
    assert clean_hub.sent_of("model.safetensors") == len(NAMES) * NBYTES
    assert told[-1] == ("download", len(NAMES) * NBYTES, len(NAMES) * NBYTES)


def test_what_is_read_side_by_side_is_brought_once(model: Ranges, clean_hub: Hub) -> None:
    """As several heads are, when they are merged: there is room for a few blocks of each, and not for all of one."""
    models = [replace(model, places=dict(model.places)) for _ in range(3)]
    clean_hub.sent = Counter()
    with Ahead(models, None, 2 * NBYTES, len(models) * NBYTES, lambda *_: None):
        for start in range(0, NBYTES, 1000):
            for one in models:
                file, begin, _ = one.places["never.read"]
                one.read(file, begin + start, 1000)
    assert clean_hub.sent_of("model.safetensors") == len(models) * NBYTES


def test_a_tensor_that_was_read_may_be_changed(model: Ranges, tmp_path: Path) -> None:
    file, begin, _ = model.places[NAMES[1]]
    stored = Stored(tmp_path / "nowhere", file, begin, "F32", model.read)
    with Ahead([model], None, 100 * NBYTES, len(NAMES) * NBYTES, lambda *_: None):
        first = stored.read(0, 200)
        before = first.clone()
        first.zero_()
        assert before.any() and torch.equal(stored.read(0, 200), before)


def test_a_full_disk_is_told_as_one(model: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Ahead([model], tmp_path / "held", 3 * NBYTES, 1, lambda *_: None):
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            take(model, NAMES[0])


def test_what_was_left_behind_is_removed(model: Ranges, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "0").write_bytes(b"of a process that was killed")
    with Ahead([model], tmp_path / "held", 3 * NBYTES, 1, lambda *_: None):
        take(model, NAMES[0])
    assert not (tmp_path / "held").exists()
