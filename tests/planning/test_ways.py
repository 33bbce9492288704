"""The ways of merging, side by side: what each is said to take, against what it takes; and which one is chosen."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import constants
from small_models import make_model, recipe, write_recipe

from lazymoe import Recipe, check, merge, merge_to_hub
from lazymoe.cli import main
from lazymoe.planning.checking import judge
from lazymoe.planning.disk import by_disk
from lazymoe.planning.prepared import Prepared, prepare
from lazymoe.planning.shapes import SHAPES, imagine
from lazymoe.planning.ways import Way, among, choose, find_ways

SMALL = {"shard_size": 1_500_000}
LITTLE = 150_000  # bytes of small files, and of headers
SEEDS = itertools.count()  # no two tests send the same bytes
WAYS = [("local", False), ("remote", False), ("local", True), ("remote", True)]


@pytest.fixture
def given(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of three models of some megabytes, all on the Hub alone."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose own store would lie on the disk as well
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    names = [f"acme/{tmp_path.name.strip('_.-')}-{i}" for i in range(3)]
    for i, name in enumerate(names):
        clean_hub.add(name, make_model(tmp_path / "models", f"m{i}", next(SEEDS), **size))
    return recipe(*names, shared_weights="average")


def of(ways: tuple[Way, ...], source: str, to_hub: bool) -> Way:
    [way] = [way for way in ways if (way.source, way.to_hub) == (source, to_hub)]
    return way


@contextmanager
def most_of(*folders: Path) -> Iterator[list[int]]:
    """The most bytes that folders hold at a time, links not followed, looked at again and again."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            nbytes = 0
            for place, _, names in (found for folder in folders for found in os.walk(folder)):
                for path in (Path(place, name) for name in names):
                    with suppress(FileNotFoundError):
                        nbytes += 0 if path.is_symlink() else path.stat().st_size
            most[0] = max(most[0], nbytes)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(("source", "to_hub"), WAYS)
def test_a_way_takes_what_it_is_said_to_take(
    source: str, to_hub: bool, given: Recipe, clean_hub: Hub, tmp_path: Path
) -> None:
    prepared = prepare(given, **SMALL)
    way = of(find_ways(prepared, prepared.sound_plan, tmp_path / "moe"), source, to_hub)
    clean_hub.sent, stored = Counter(), clean_hub.large_bytes()
    with most_of(tmp_path / "moe", Path(constants.HF_HUB_CACHE)) as most:
        if to_hub:
            merge_to_hub(given, "writer/ways", tmp_path / "moe", token="hf_writer", source=source, **SMALL)
        else:
            merge(given, tmp_path / "moe", source=source, **SMALL)
    assert 0.7 * way.disk < most[0] <= way.disk + LITTLE
    sent = clean_hub.sent_of("model.safetensors")
    if source == "local":
        assert way.download <= sent <= way.download + LITTLE and way.remote is None
    else:
        assert way.remote and way.download == 0
        assert way.remote.nbytes <= sent <= way.remote.nbytes + LITTLE
    assert way.upload <= clean_hub.large_bytes() - stored <= way.upload + LITTLE


def test_what_cannot_be_read_remotely_has_no_such_way(given: Recipe, tmp_path: Path) -> None:
    local = recipe(tmp_path / "models" / "m0", tmp_path / "models" / "m1")
    assert [(way.source, way.to_hub) for way in check(given).ways] == WAYS
    assert [(way.source, way.to_hub) for way in check(local).ways] == [("local", False), ("local", True)]
    assert [way.brought for way in check(local).ways] == [0, 0]
    prepare(given).fetch()  # into the cache
    assert [(way.source, way.to_hub) for way in check(given).ways] == [("local", False), ("local", True)]


def test_elsewhere_it_takes_what_it_would_take_here_without_a_cache(given: Recipe, tmp_path: Path) -> None:
    def figures(elsewhere: bool) -> list[tuple[object, ...]]:
        prepared = prepare(given, **SMALL)
        ways = find_ways(prepared, prepared.sound_plan, tmp_path / "moe", elsewhere=elsewhere)
        return [(way.source, way.to_hub, way.brought, way.upload, way.disk, way.memory) for way in ways]

    before = figures(elsewhere=False)
    assert figures(elsewhere=True) == before
    prepare(given).fetch()  # into the cache
    assert figures(elsewhere=True) == before != figures(elsewhere=False)


@pytest.fixture
def colab() -> Prepared:
    """A mixture of four models of 7B, as a free Colab finds it: none of them is here."""
    return imagine(Recipe.from_file("beyonder-4x7b-v3"), SHAPES["Mistral-7B"], Path.cwd())


def test_the_figures_of_a_4x7b(colab: Prepared) -> None:
    """Worked out by hand: layers of a Mistral in 16 bit, four models of which one is the base model too."""
    hidden, wide, keys, layers, vocabulary = 4096, 14336, 1024, 32, 32000
    attention = 2 * hidden * hidden + 2 * hidden * keys + 2 * hidden
    backbone = 2 * (layers * attention + 2 * vocabulary * hidden + hidden)
    ffn, routers = 2 * layers * 3 * hidden * wide, 2 * layers * 4 * hidden
    here, away, straight, both = find_ways(colab, colab.sound_plan, Path.cwd(), 75 * 10**9, 12 * 10**9)
    assert here.download == straight.download == 4 * (backbone + ffn)
    assert away.brought == both.brought == backbone + 4 * ffn  # attention of the base model alone
    assert (here.upload, straight.upload) == (0, backbone + 4 * ffn + routers) == (away.upload, both.upload)
    output, layer = straight.upload, 2 * (attention + 4 * 3 * hidden * wide)
    assert here.disk == output + here.download
    assert away.disk == output + 2 * layer
    assert straight.disk - straight.download == both.disk - 2 * layer <= 2 * 4_000_000_000
    assert not here.fits and here.lacking == here.disk - 75 * 10**9
    assert away.fits and straight.fits and both.fits
    short = find_ways(colab, colab.sound_plan, Path.cwd(), 75 * 10**9, memory=10**9)
    assert [way.figures()["fits"] for way in short] == ["lacks 31.2 GB", *["memory is short"] * 3]


def test_the_first_that_fits_is_chosen(colab: Prepared) -> None:
    def chosen(disk: int, source: str = "auto", to_hub: bool | None = None) -> tuple[str, bool] | None:
        ways = find_ways(colab, colab.sound_plan, Path.cwd(), disk * 10**9, 12 * 10**9)
        way = choose(among(ways, source, to_hub))  # type: ignore[arg-type]
        return (way.source, way.to_hub) if way else None

    assert chosen(110) == ("local", False)
    assert chosen(100) == ("remote", False)
    assert chosen(100, "local") == ("local", True)
    assert chosen(100, "local", to_hub=False) is None
    assert chosen(100, to_hub=True) == ("local", True)
    assert chosen(40) == ("remote", True)
    assert chosen(40, to_hub=False) is None
    assert chosen(5) is None


def test_what_cannot_fit_is_refused_with_the_way_that_would(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(given, **SMALL)
    ways = {(w.source, w.to_hub): w for w in find_ways(prepared, prepared.sound_plan, tmp_path)}
    assert ways["local", False].disk > ways["local", True].disk > ways["remote", False].disk > ways["remote", True].disk

    def refused(nbytes: int, *options: str) -> str:
        def limited(needs: object, free: object = None) -> object:
            return by_disk(needs, nbytes)  # type: ignore[arg-type]

        monkeypatch.setattr("lazymoe.planning.ways.by_disk", limited)
        arguments = ["merge", str(write_recipe(tmp_path / "recipe.yaml", given)), *options, "--shard-size", "1500kB"]
        assert main(arguments) == 2
        assert not (tmp_path / "moe").exists()
        [line] = capsys.readouterr().err.splitlines()
        return line

    here = str(tmp_path / "moe")
    line = refused(ways["local", True].disk, here, "--source", "local")
    assert "are free. Free some space, or choose another disk. Or leave the models where they are, which fits:" in line
    assert line.endswith(": --source remote.")
    assert refused(ways["remote", True].disk, here).endswith("which fits: --source remote --to USER/NAME.")
    assert refused(ways["remote", True].disk - 1, here).endswith("choose another disk.")
    found = judge(prepared, tmp_path)
    assert found.way is None and [p.code for p in found.errors] == ["output.no-room"]


def test_a_check_shows_them_side_by_side(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write_recipe(tmp_path / "recipe.yaml", given))
    monkeypatch.chdir(tmp_path)
    assert main(["check", file]) == 0
    told = capsys.readouterr().out
    rows = {line[:17].strip(): re.split(r"\s{2,}", line[17:].strip()) for line in told.splitlines()}
    found = check(given)
    assert rows["--source"] == ["local", "remote"] * 2 and rows["--to"] == ["USER/NAME"] * 2
    assert rows["from the Hub"] == [f"{way.brought / 1e6:.1f} MB" for way in found.ways]
    assert rows["disk"] == [f"{way.disk / 1e6:.1f} MB" for way in found.ways]
    assert rows["fits"] == ["yes, chosen", "yes", "yes", "yes"]
    assert max(map(len, told.splitlines()[8:16])) <= 100
    assert main(["check", file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [way["disk_bytes"] for way in told["ways"]] == [way.disk for way in found.ways]
    assert [way["chosen"] for way in told["ways"]] == [True, False, False, False]


def test_a_disk_of_its_own_has_room_of_its_own(tmp_path: Path) -> None:
    """The cache and the output may lie on two disks; folders that aren't there yet lie where they will."""
    one, other = tmp_path / "not" / "there", Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk")
    needs = by_disk([(one, 5), (other, 7), (tmp_path, 1)], free=6)
    assert [(need.place, need.nbytes, need.lacking) for need in needs] == [(tmp_path, 6, 0), (other, 7, 1)]
    [way, *_] = find_ways(*_imagined(), tmp_path)
    assert replace(way, needs=needs).lacking == 1 and not replace(way, needs=needs).fits


def _imagined() -> tuple[Prepared, object]:
    prepared = imagine(Recipe.from_file("qwen3-4x0.6b"), SHAPES["Qwen3-0.6B"], Path.cwd())
    return prepared, prepared.sound_plan
