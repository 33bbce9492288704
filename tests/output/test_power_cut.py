"""What a power cut, a bad disk or a careless hand does to any file, at any time: a rerun gives the right bytes, or says
in one line what to delete. It never succeeds with wrong ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import contents, make_model, recipe

from lazymoe import LazyMoEError, Recipe, merge

SMALL = {"shard_size": 30_000}


def tail_zeroed(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2] + bytes(size - size // 2))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "tail zeroed": tail_zeroed,
    "a byte more": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
}
WORK_FILES = [
    "lazymoe.json", "router.safetensors", "router.safetensors.seal", "shared-00000.safetensors",
    "shared-00001.safetensors.seal", "shared-outer.safetensors", "shared-outer.safetensors.seal",
    "model-00001-of-00002.safetensors.seal",
]  # fmt: skip
FILES = [
    "config.json", "generation_config.json", "lazymoe.json", "model.safetensors.index.json", "recipe.yaml",
    "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
]  # fmt: skip
HALF = [*(f".lazymoe/{name}" for name in WORK_FILES), "model-00001-of-00002.safetensors"]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Path]:
    """A recipe, the folder of a merge that stopped in the middle, and one of a merge that didn't."""
    folder = tmp_path_factory.mktemp("merged")
    base, *experts = (make_model(folder, f"model-{i}", seed=i) for i in range(3))
    (base / "tokenizer.json").write_text('{"a": 1}')
    given = recipe(base, *experts, shared_weights="average")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total * 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(given, folder / "half", progress=stop, **SMALL)
    merge(given, folder / "whole", **SMALL)
    return given, folder / "half", folder / "whole"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(("state", "name"), [*(("half", n) for n in HALF), *(("whole", n) for n in FILES)])
def test_nothing_damaged_is_believed(
    state: str, name: str, damage: Callable[[Path], object], merged: tuple[Recipe, Path, Path], tmp_path: Path
) -> None:
    given, half, whole = merged
    moe = shutil.copytree(half if state == "half" else whole, tmp_path / "moe")
    damage(moe / name)
    try:
        merge(given, moe, **SMALL)
    except LazyMoEError as e:
        [problem] = e.problems
        assert "elete" in problem.remedy
        if (moe / name).is_file() and "it to have it made anew" in problem.remedy:  # what it says helps
            (moe / name).unlink()
        else:
            shutil.rmtree(moe)
        merge(given, moe, **SMALL)
    assert contents(moe) == contents(whole)
    assert not (moe / ".lazymoe").exists()
