"""A finished folder is looked at again, and so are its sources: what was done to them is noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from small_models import Make, contents, recipe, rewrite

from lazymoe import LazyMoEError, Recipe, merge
from lazymoe.output.folder import RECORD, WORK

SMALL = {"shard_size": 20_000}


@pytest.fixture
def given(make: Make) -> Recipe:
    return recipe(make("base", seed=1), make("a", seed=2), make("b", seed=3))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a shard deleted": lambda moe: shards(moe)[1].unlink(),
    "all shards deleted": lambda moe: [shard.unlink() for shard in shards(moe)],
    "a shard emptied": lambda moe: shards(moe)[0].write_bytes(b""),
    "a shard cut": lambda moe: os.truncate(shards(moe)[0], 5000),
    "a shard lengthened": lambda moe: os.truncate(shards(moe)[0], 50_000),
    "a shard zeroed": lambda moe: shards(moe)[0].write_bytes(bytes(shards(moe)[0].stat().st_size)),
    "two shards exchanged": lambda moe: shutil.copy(shards(moe)[0], shards(moe)[1]),
    "no index": lambda moe: (moe / "model.safetensors.index.json").unlink(),
    "no config": lambda moe: (moe / "config.json").unlink(),
    "no recipe": lambda moe: (moe / "recipe.yaml").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_rerun_mends_what_was_damaged(damage: Callable[[Path], object], given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe", **SMALL).folder
    whole = contents(moe)
    damage(moe)
    merge(given, moe, **SMALL)
    assert contents(moe) == whole


def test_what_is_sound_is_not_written_again(given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe", **SMALL).folder
    before = {shard.name: shard.stat().st_mtime_ns for shard in shards(moe)}
    shards(moe)[1].unlink()
    merge(given, moe, **SMALL)
    after = {shard.name: shard.stat().st_mtime_ns for shard in shards(moe)}
    assert [name for name in before if before[name] != after[name]] == [shards(moe)[1].name]


def test_an_expert_that_was_trained_anew_is_noticed(given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe").folder
    before = contents(moe)
    rewrite(tmp_path / "a", lambda t: t["model.layers.0.mlp.up_proj.weight"].mul_(2))
    with pytest.raises(LazyMoEError, match=r"model\.safetensors of .*a has changed since this mixture was made"):
        merge(given, moe)
    assert contents(moe) == before


def test_a_new_commit_on_the_hub_is_noticed(make: Make, hub: Hub, tmp_path: Path) -> None:
    for seed in (1, 2):
        hub.add("acme/moving", make(f"model-{seed}", seed=seed))
        if seed == 1:
            merge(recipe("acme/moving", "acme/moving", "acme/moving"), tmp_path / "moe")
    with pytest.raises(LazyMoEError, match=r"of acme/moving has changed since"):
        merge(recipe("acme/moving", "acme/moving", "acme/moving"), tmp_path / "moe")


def test_a_source_replaced_in_the_middle_gives_no_mix(given: Recipe, tmp_path: Path) -> None:
    def replace(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total / 2:
            rewrite(tmp_path / "b", lambda t: t.update({name: torch.zeros_like(x) for name, x in t.items()}))

    with pytest.raises(LazyMoEError, match=r"of .*b has changed since the merge into"):
        merge(given, tmp_path / "moe", progress=replace)
    assert not (tmp_path / "moe").exists()


def test_an_interrupted_merge_goes_on_after_the_cache_is_gone(make: Make, hub: Hub, tmp_path: Path) -> None:
    """As on a new Colab machine, with the output on a drive: a model from the Hub is the same by its commit."""
    hub.add("acme/kept", make("kept"))

    def stop(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe("acme/kept", "acme/kept", "acme/kept"), tmp_path / "moe", progress=stop, **SMALL)
    from huggingface_hub import constants

    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--acme--kept")
    merge(recipe("acme/kept", "acme/kept", "acme/kept"), tmp_path / "moe", **SMALL)
    merge(recipe("acme/kept", "acme/kept", "acme/kept"), tmp_path / "whole", **SMALL)
    assert contents(tmp_path / "moe") == contents(tmp_path / "whole")


def test_two_processes_do_not_share_a_folder(given: Recipe, tmp_path: Path) -> None:
    def another(stage: str, done: int, total: int) -> None:
        with pytest.raises(LazyMoEError, match="another process is at work in this folder"):
            merge(given, tmp_path / "moe")

    assert merge(given, tmp_path / "moe", progress=another).folder == tmp_path / "moe"


def test_the_record_names_no_place_on_this_machine(given: Recipe, tmp_path: Path) -> None:
    record = (merge(given, tmp_path / "moe").folder / RECORD).read_text()
    assert str(tmp_path) not in record and "model.safetensors" in record


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fingerprint": 1}', '{"sources": 5}'])
@pytest.mark.parametrize("place", [RECORD, f"{WORK}/{RECORD}"])
def test_a_record_that_cannot_be_read_is_another_merges(place: str, text: str, given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe").folder
    (moe / place).parent.mkdir(exist_ok=True)
    (moe / place).write_text(text)
    with pytest.raises(LazyMoEError, match="holds another merge"):
        merge(given, moe)


def test_the_sources_may_be_named_otherwise_if_they_are_the_same(given: Recipe, tmp_path: Path) -> None:
    moe = merge(given, tmp_path / "moe").folder
    record = json.loads((moe / RECORD).read_text())
    del record["sources"][0]["stamps"]  # as an older version wrote it
    (moe / RECORD).write_text(json.dumps(record))
    assert merge(given, moe).folder == moe


def test_what_is_half_made_may_lie_on_another_disk(given: Recipe, tmp_path: Path) -> None:
    """Behind a link, as a mount point does; cleaning up leaves it empty, and the mixture is finished."""
    (tmp_path / "other").mkdir()
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / WORK).symlink_to(tmp_path / "other")
    moe = merge(given, tmp_path / "moe", **SMALL).folder
    assert not list((tmp_path / "other").iterdir())
    before = contents(moe)
    merge(given, moe, **SMALL)
    assert contents(moe) == before
