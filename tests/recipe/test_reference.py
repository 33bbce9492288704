"""How a recipe names models: folders, Hub ids, revisions, adapters, GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazymoe.recipe.reference import Reference


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/name@v1.0", ("org/name", "v1.0", None)),
        ("org/name+org/lora", ("org/name", None, "org/lora")),
        ("org/name@abc+some/folder", ("org/name", "abc", "some/folder")),
    ],
)
def test_references(text: str, parts: tuple[str, str | None, str | None]) -> None:
    reference = Reference.parse(text)
    assert (reference.model, reference.revision, reference.adapter) == parts
    assert str(reference) == text


def test_an_existing_path_is_taken_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "a+b@c"
    folder.mkdir()
    assert Reference.parse(str(folder)) == Reference(str(folder))


def test_a_file_of_a_repository_is_told_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference.parse("org/name/quants/model-Q8_0.gguf@v1+org/lora")
    assert reference == Reference("org/name", "v1", "org/lora", "quants/model-Q8_0.gguf")
    assert str(reference) == "org/name/quants/model-Q8_0.gguf@v1+org/lora"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "model.gguf").touch()
    assert Reference.parse("org/name/model.gguf") == Reference("org/name/model.gguf")


@pytest.mark.parametrize(
    ("text", "name"),
    [("org/name@v1", "name"), ("/some/folder/", "folder"), ("org/base+org/lora@v2", "lora"), ("name", "name")],
)
def test_short_names(text: str, name: str) -> None:
    assert Reference.parse(text).short_name == name


def test_a_name_that_can_be_none_is_told(tmp_path: Path) -> None:
    for possible in ("org/name", "name", "org/name@v1", str(tmp_path)):
        assert Reference.parse(possible).nowhere("base_model") is None
    for impossible in ("/no/such/folder", "./folder", "a b/c", "~nobody/model"):
        problem = Reference.parse(impossible).nowhere("base_model")
        assert problem is not None and (problem.code, problem.where) == ("source.not-found", "base_model")


def test_home_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model@v1").mkdir()
    assert Reference.parse("~/model@v1") == Reference("~/model@v1")
    assert Reference.parse("~/model@v1").path == tmp_path / "model@v1"
