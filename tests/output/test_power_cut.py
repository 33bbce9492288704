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
from lazymoe.progress import Progress

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
    "lazymoe.json", "router.safetensors", "router.safetensors.seal", "model-00001-of-00002.safetensors.seal",
    "model-00002-of-00002.safetensors",
]  # fmt: skip
FILES = [
    "config.json", "generation_config.json", "lazymoe.json", "model.safetensors.index.json", "recipe.yaml",
    "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
]  # fmt: skip
HALF = [*(f".lazymoe/{name}" for name in WORK_FILES), "model-00001-of-00002.safetensors"]
SWEPT = [".lazymoe/states-00001.safetensors", ".lazymoe/states-00001.safetensors.seal", ".lazymoe/lazymoe.json",
         ".lazymoe/model-00002-of-00004.safetensors", ".lazymoe/model-00002-of-00004.safetensors.parts"]  # fmt: skip
Merges = dict[str, tuple[Recipe, Path, Path]]


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Merges:
    """By the state of a merge: its recipe, its folder then, and in the end. It stopped while it wrote, or after a layer
    of its sweep, or it didn't stop."""
    folder = tmp_path_factory.mktemp("merged")
    base, *experts = (make_model(folder, f"model-{i}", seed=i) for i in range(3))
    (base / "tokenizer.json").write_text('{"a": 1}')
    given = recipe(base, *experts, shared_weights="average")
    models = [make_model(folder, f"larger-{i}", seed=i, vocab_size=512) for i in range(2)]
    for file in (demo_models / "base").glob("token*"):
        shutil.copy(file, models[0])
    listed = [{"source_model": str(m), "positive_prompts": [f"The words of {i}"]} for i, m in enumerate(models)]
    fitted = Recipe.model_validate({"base_model": str(models[0]), "experts": listed})

    def stop(at: str, part: float) -> Progress:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == at and done > total * part:
                raise KeyboardInterrupt

        return progress

    for wanted, name, how in ((given, "half", stop("write", 0.9)), (fitted, "swept", stop("sweep", 0.4))):
        with pytest.raises(KeyboardInterrupt):
            merge(wanted, folder / name, progress=how, **SMALL)
        merge(wanted, folder / f"{name}-whole", **SMALL)
    whole = folder / "half-whole"
    return {
        "half": (given, folder / "half", whole),
        "whole": (given, whole, whole),
        "swept": (fitted, folder / "swept", folder / "swept-whole"),
    }


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(
    ("state", "name"),
    [(state, n) for state, names in (("half", HALF), ("whole", FILES), ("swept", SWEPT)) for n in names],
)
def test_nothing_damaged_is_believed(
    state: str, name: str, damage: Callable[[Path], object], merges: Merges, tmp_path: Path
) -> None:
    given, folder, whole = merges[state]
    moe = shutil.copytree(folder, tmp_path / "moe")
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
