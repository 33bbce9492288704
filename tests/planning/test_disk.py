"""What is written already needs no room, if it is this plan's own and where this plan puts it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from small_models import Make, recipe, sparse

from lazymoe import check, merge
from lazymoe.checkpoint.safetensors import write_header
from lazymoe.cli import main
from lazymoe.merging import carry_out
from lazymoe.planning import disk
from lazymoe.planning.checking import judge
from lazymoe.planning.prepared import Prepared, prepare

CONFIG = {
    "model_type": "llama", "vocab_size": 8, "hidden_size": 2**16, "intermediate_size": 2**22, "num_hidden_layers": 8,
    "num_attention_heads": 512, "num_key_value_heads": 1,
}  # fmt: skip


@pytest.fixture
def huge(tmp_path: Path) -> Prepared:
    """A plan of 26 TB, in a folder with the three models that it is made of."""
    folders = [sparse(tmp_path / name, CONFIG, shards=8) for name in ("base", "one", "two")]
    return prepare(recipe(*folders))


def needed(prepared: Prepared, folder: Path) -> float:
    """How many GB the check finds missing."""
    [problem] = judge(prepared, folder, to_hub=False).errors
    assert problem.code == "output.no-room"
    return float(problem.what.partition(" GB")[0])


def hole(path: Path, size: int, header: bytes = b"") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header)
    os.truncate(path, size)


def test_models_below_the_folder_are_strangers(
    huge: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = needed(huge, tmp_path / "new")
    assert everything > 20_000
    assert needed(huge, tmp_path) == needed(huge, tmp_path / "base") == everything
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(huge.recipe.to_yaml())
    assert main(["check", "recipe.yaml"]) == 2
    assert f"{everything:.1f} GB" in "".join(capsys.readouterr())


def test_the_tree_is_not_walked(huge: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    own = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(str(path)) or own(path))
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    needed(huge, tmp_path)
    assert not [path for path in listed if "deep" in path or path.endswith(("base", "one", "two"))]


@pytest.mark.parametrize("place", ["", ".lazymoe"])
def test_its_own_shards_count(place: str, huge: Prepared, tmp_path: Path) -> None:
    everything, out = needed(huge, tmp_path / "new"), tmp_path / "out"
    out.mkdir()
    taken = 0
    for name, outputs in huge.sound_plan.shards[1:4]:
        header = write_header((o.name, o.dtype, o.shape) for o in outputs)
        size = sum(o.nbytes for o in outputs)
        hole(out / place / name, len(header) + size, header)
        taken += size
    assert taken > 10**10
    assert everything - needed(huge, out) == pytest.approx(taken / 1e9, abs=0.2)
    half, _ = max(huge.sound_plan.shards[4:], key=lambda shard: sum(o.nbytes for o in shard[1]))
    hole(out / ".lazymoe" / half, 4 * 10**9)  # it was stopped there
    assert everything - needed(huge, out) == pytest.approx(taken / 1e9 + 4, abs=0.2)


def test_other_shards_do_not(huge: Prepared, tmp_path: Path) -> None:
    everything, out = needed(huge, tmp_path / "new"), tmp_path / "out"
    out.mkdir()
    name, outputs = huge.sound_plan.shards[0]
    hole(out / "model-00001-of-00002.safetensors", 10**12)  # of another number of shards
    hole(out / "sub" / name, 10**12)
    hole(out / ".lazymoe" / "model-00001-of-00002.safetensors", 10**12)
    header = write_header([("other.weight", "BF16", (5 * 10**11,))])
    hole(out / name, len(header) + 10**12, header)  # of another model
    assert needed(huge, out) == everything
    (out / name).unlink()
    hole(out / name, 10**13)  # no more than it takes
    size = sum(o.nbytes for o in outputs)
    assert everything - needed(huge, out) == pytest.approx(size / 1e9, abs=0.2)


def test_a_finished_mixture_takes_nothing_more(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make("base")
    given, out = recipe(base, base, base), tmp_path / "out"
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: full)
    assert [p.code for p in check(given, out).errors] == ["output.no-room"]
    monkeypatch.undo()
    merge(given, out)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: full)
    assert not check(given, out).errors
    merge(given, out)
    assert [p.code for p in check(recipe(base, base, base, base), out).errors] == ["output.no-room"]


def test_what_was_written_before_a_stop_counts(make: Make, tmp_path: Path) -> None:
    base, told = make("base"), 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal told
        told = done
        if stage == "write" and done > total / 2:
            raise KeyboardInterrupt

    prepared, out = prepare(recipe(base, base, base, shared_weights="average"), shard_size=20_000), tmp_path / "out"
    assert disk.written(prepared.sound_plan, out) == 0
    with pytest.raises(KeyboardInterrupt):
        carry_out(prepared, out, progress=stop)
    assert told <= disk.written(prepared.sound_plan, out) < told + 10_000  # headers
