"""A mixture's folder: finished or not, and what it says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_models import Make, configure, recipe

from lazymoe import OutputError, merge
from lazymoe.output.folder import (
    CONFIG,
    INDEX,
    RECIPE,
    RECORD,
    REPORT,
    is_finished,
    open_finished,
    read_report,
    trusted,
)


@pytest.fixture
def moe(make: Make, tmp_path: Path) -> Path:
    base = make("base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    return merge(recipe(base, base, make("expert", seed=1)), tmp_path / "moe", shard_size=40_000).folder


def test_it_says_what_it_is(moe: Path) -> None:
    done = open_finished(moe)
    assert done.host.name == "mixtral" and done.chats and done.report == {}
    assert [e.source_model for e in done.recipe.experts] == [str(moe.with_name(n)) for n in ("base", "expert")]
    assert done.record.parameters == sum(p.stat().st_size for p in done.weights) // 2 - _headers(done.weights) // 2
    assert len(done.weights) > 1 and all(path.suffix == ".safetensors" for path in done.weights)
    every = {path.name for path in moe.iterdir()}
    assert {p.name for p in done.small} | {p.name for p in done.weights} == every
    (moe / "thesis.txt").write_text("not ours")
    assert {p.name for p in open_finished(moe).small} == every - {p.name for p in done.weights}


def _headers(files: list[Path]) -> int:
    """Bytes of these files that are no weights."""
    return sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)


@pytest.mark.parametrize("name", [CONFIG, RECIPE, RECORD])
def test_without_one_of_its_files_it_is_not_finished(moe: Path, name: str) -> None:
    assert is_finished(moe)
    (moe / name).unlink()
    assert not is_finished(moe)
    with pytest.raises(OutputError) as caught:
        open_finished(moe)
    assert caught.value.problems[0].code == "output.unfinished"


@pytest.mark.parametrize("name", [CONFIG, RECORD, INDEX])
@pytest.mark.parametrize("content", ["{", "\udcff"])
def test_what_can_not_be_read_is_told(moe: Path, name: str, content: str) -> None:
    (moe / name).write_text(content, errors="surrogateescape")
    with pytest.raises(OutputError) as caught:
        _ = open_finished(moe).weights
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("output.damaged", str(moe))


def test_lost_weights_are_told(moe: Path) -> None:
    lost = open_finished(moe).weights[-1]
    lost.unlink()
    with pytest.raises(OutputError, match=f"it lacks {lost.name}"):
        _ = open_finished(moe).weights


def test_the_index_decides_which_weights_are_its_own(moe: Path) -> None:
    index = json.loads((moe / INDEX).read_text())
    shutil.copy(moe / next(iter(index["weight_map"].values())), moe / "model-00099-of-00099.safetensors")
    assert {p.name for p in open_finished(moe).weights} == set(index["weight_map"].values())


def test_another_programs_model_is_none_of_ours(moe: Path) -> None:
    configure(moe, model_type="gpt2")
    with pytest.raises(OutputError, match="'gpt2', which LazyMoE doesn't make"):
        _ = open_finished(moe).host
    assert not trusted(moe)


@pytest.mark.parametrize(("content", "found"), [("{", {}), ("[1]", {}), ('{"a": 1}', {"a": 1}), (None, {})])
def test_a_report_that_can_not_be_read_is_none(tmp_path: Path, content: str | None, found: dict[str, int]) -> None:
    if content is not None:
        (tmp_path / REPORT).write_text(content)
    assert read_report(tmp_path) == found
