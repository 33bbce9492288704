"""How long a merge takes: what it counts, and what it tries out to know the rates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hub_server import Hub
from small_models import recipe

from lazymoe import Recipe, check
from lazymoe.hub.downloading import AT_ONCE
from lazymoe.planning import duration
from lazymoe.planning.prepared import prepare
from lazymoe.units import minutes


def test_what_is_computed_is_counted(pair: tuple[Path, Path]) -> None:
    experts = [{"source_model": str(model), "positive_prompts": ["some words"]} for model in pair]

    def operations(**fields: str) -> float:
        asked = {"base_model": str(pair[0]), "experts": experts, **fields}
        prepared = prepare(Recipe.model_validate(asked))
        return duration._operations(prepared.prompts, prepared.sound_plan)

    counted = [
        operations(gate_mode=mode, shared_weights=shared)
        for mode, shared in (("random", "base"), ("hidden", "base"), ("fit", "base"), ("fit", "regmean"))
    ]
    counted.append(operations(expert_weights="corrected"))
    assert counted[0] == 0 and counted == sorted(set(counted))
    assert operations(gate_mode="random", expert_weights="corrected") > 0


def test_a_network_is_tried_out(pair: tuple[Path, Path], clean_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a file that is missing here, at once; nothing where little is to be downloaded."""
    for name, folder in zip(("acme/a", "acme/b"), pair, strict=True):
        clean_hub.add(name, folder)
    wanted = recipe("acme/a", "acme/a", "acme/b")
    found = check(wanted)
    assert re.search("time +less than a minute", str(found)) and "time to upload" in str(found)
    monkeypatch.setattr(duration, "LITTLE", 0)
    monkeypatch.setattr(duration, "PARTS", (1 << 8, 1 << 10))
    clean_hub.requests.clear()
    found = check(wanted)
    assert all(way.seconds and way.seconds >= duration.BEGIN for way in found.ways)
    assert [way.upload_seconds is not None and way.upload_seconds > 0 for way in found.ways] == [0, 0, 1, 1]
    headers = 2 * 2  # of two models, each in two parts
    assert sum(r.status == 206 for r in clean_hub.requests) == 2 * AT_ONCE + headers  # once, for all four ways
    assert found.way and found.way.download == sum((p / "model.safetensors").stat().st_size for p in pair)

    prepared = prepare(wanted)
    clean_hub.fault("GET .*model.safetensors", 403, times=100)
    rates = duration.Measured(prepared.sources, Path.cwd())
    for way in duration.with_times(found.ways, prepared, prepared.sound_plan, rates):
        assert way.seconds is None and (way.upload_seconds is None) is way.to_hub


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "less than a minute"), (61, "about 1 minute"), (1500, "about 25 minutes"), (9000, "about 2.5 hours")],
)
def test_minutes(seconds: float, words: str) -> None:
    assert minutes(seconds) == words
