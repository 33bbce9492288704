"""Which tokens are read together, and where their states are meanwhile; the answers are held against lm-eval's own in
tests/evaluating/test_harness.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_models import Make

from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward import likelihoods as module
from lazymoe.forward.likelihoods import Answered, Asked, Means, layers_of, likelihoods
from lazymoe.forward.spilling import Spilled
from lazymoe.forward.stream import Stream

TEXTS = [Asked((n + 3, *range(1, 9 + n % 3)), (n + 2, n + 3)) for n in range(20)]


def test_states_come_back_as_they_went(tmp_path: Path) -> None:
    kept, spilled = [torch.rand(3, n, 5) for n in (4, 1, 7)], Spilled(tmp_path, "cpu")
    for states in kept:
        spilled.append(states)
    for size in (1, 4, 2):  # in its place, and where there is room
        kept[1] = torch.rand(3, 5, size).transpose(1, 2)
        spilled[1] = kept[1]
        assert len(spilled) == 3 and all(map(torch.equal, spilled, kept))
    assert not list(tmp_path.iterdir())  # it has no name


@pytest.mark.parametrize("far", [False, True])
def test_the_disk_is_taken_where_that_moves_fewer_bytes(far: bool, make: Make, tmp_path: Path) -> None:
    """And what is answered is the same, however often the weights are read."""
    source = open_folder(make("model"))
    vector, tokens = 4 * source.config["hidden_size"], sum(len(one.read) for one in TEXTS)
    spilled = 2 * vector * layers_of(source) * tokens  # bytes
    readings: list[Path | None] = []

    def run(batches, passed, place):  # type: ignore[no-untyped-def]
        readings.append(place)
        stream = Stream(source, batches, "cpu", place)
        for _ in range(layers_of(source)):
            stream.step()
        return stream

    def answers(room: int, again: int) -> dict[Asked, Answered]:
        means = Means(room, 2, 2, again, tmp_path)
        return {k: v for f in likelihoods(run, source, TEXTS, means, lambda *_: None) for k, v in f.items()}

    whole = answers(2 * vector * tokens, 10**15)
    assert readings == [None]
    room = 2 * vector * tokens // 4
    found = answers(room, spilled if far else spilled // 8)
    assert readings[1:] == [tmp_path] if far else len(readings) >= 5 and set(readings) == {None}
    assert found.keys() == whole.keys() == set(TEXTS)
    for one, answer in found.items():
        assert (
            answer.likelihood == pytest.approx(whole[one].likelihood, abs=1e-4) and answer.greedy == whole[one].greedy
        )


def test_no_more_goes_to_the_disk_than_it_has_room_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, usage = open_folder(make("model")), os.statvfs(tmp_path)
    free = usage.f_bavail * usage.f_frsize
    vector = 4 * source.config["hidden_size"]
    monkeypatch.setattr(module, "DISK", 20 * vector / free)
    most, place = module._together(1000, source, Means(2 * vector, 2, 2, 10**12, tmp_path))
    assert place == tmp_path and 8 <= most <= 12
