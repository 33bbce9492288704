"""Models on the Hub are asked where they are: the same answers as of models that are here, and hardly any disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hub_server import Hub
from test_remote import put

import lazymoe
from lazymoe import LazyMoEError, Recipe, merge
from lazymoe.cli import main
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.files import cache
from lazymoe.forward import spilling
from lazymoe.hub import ahead
from lazymoe.planning import disk

WEIGHTS = "model.safetensors"


@pytest.fixture
def there(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mixture of models on the Hub that no cache has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(ahead, "BLOCK", 1000)
    recipe = put(clean_hub, tmp_path, max_position_embeddings=512)
    moe = merge(recipe, tmp_path / "moe", source="remote").folder
    clean_hub.sent = Counter()
    return moe


def ask(moe: Path, answers: Path, own: list[str], source: str = "auto", **options: object) -> Evaluation:
    """Ask all of them anew."""
    shutil.rmtree(answers)
    answers.mkdir()
    return lazymoe.evaluate(moe, own, limit=8, device="cpu", source=source, **options)  # type: ignore[arg-type]


def room(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let every disk have so much room."""
    full = shutil.disk_usage("/")._replace(free=nbytes)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: full)


def cached(moe: Path) -> list[Path]:
    from huggingface_hub.constants import HF_HUB_CACHE

    names = {m.reference.model.replace("/", "--") for m in Recipe.from_file(moe / "recipe.yaml").models}
    return [p for name in names for p in Path(HF_HUB_CACHE).glob(f"models--{name}/snapshots/*/{WEIGHTS}")]


def test_the_answers_are_those_of_models_that_are_here(
    there: Path, answers: Path, own: list[str], clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.extend([(done, total)] * (stage == "download"))

    size = sum(file.stat().st_size for file in (tmp_path / "models").rglob(WEIGHTS))
    room(monkeypatch, size - 1)
    found = ask(there, answers, own, progress=progress)
    assert not cached(there) and not list((cache() / "evaluating").iterdir())
    assert 1.9 * size < clean_hub.sent_of(WEIGHTS) < 2.2 * size  # by themselves, and together for their average
    assert told == sorted(told) and len({total for _, total in told}) == 1 and told[-1][0] == told[-1][1]
    room(monkeypatch, 10 * size)
    local = ask(there, answers, own)
    assert len(cached(there)) == 3
    for mine, other in zip(found.results, local.results, strict=True):
        assert mine.metrics == other.metrics


def test_without_room_it_is_told_what_fits(
    there: Path, answers: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["evaluate", str(there), "--tasks", own[0], "--limit", "2", "--device", "cpu", "--quiet"]
    room(monkeypatch, sum(file.stat().st_size for file in (tmp_path / "models").rglob(WEIGHTS)) - 1)
    assert main([*command, "--source", "local"]) == 2
    said = capsys.readouterr().err
    assert "of disk are needed and" in said and said.count("\n") == 1
    assert "Or leave the models where they are, which fits: --source remote." in said
    room(monkeypatch, 100)
    for source in ("auto", "remote", "local"):
        assert main([*command, "--source", source]) == 2
        said = capsys.readouterr().err
        assert "of disk are needed" in said and "--source" not in said and said.count("\n") == 1
    assert main([*command, "--source", "elsewhere"]) == 2


def test_a_broken_connection_is_told_in_a_line_and_what_was_answered_stays(
    there: Path, answers: Path, own: list[str], clean_hub: Hub
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "evaluate" and done and not clean_hub.faults:
            clean_hub.fault(f"GET .*-1/.*/{WEIGHTS}", 404, times=10**6, seconds=0)

    with pytest.raises(LazyMoEError) as caught:
        ask(there, answers, own, "remote", progress=progress)
    assert "\n" not in str(caught.value) and not list((cache() / "evaluating").iterdir())
    assert len(list(answers.iterdir())) == 1  # the base model's


def test_a_full_disk_is_told_in_a_line(
    there: Path, answers: Path, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ranges of models, and of states."""

    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(lazymoe.OutputError) as caught:
        patch.setattr(Path, "write_bytes", Full)
        ask(there, answers, own, "remote", models="base")
    assert [problem.code for problem in caught.value.problems] == ["output.full"]
    monkeypatch.setattr(spilling.tempfile, "TemporaryFile", Full)
    with pytest.raises(lazymoe.OutputError, match="Make room and evaluate again: it goes on") as caught:
        ask(there, answers, own, "remote", models="base", memory=40_000)
    assert [problem.code for problem in caught.value.problems] == ["output.full"]
    assert not list((cache() / "evaluating").iterdir())
