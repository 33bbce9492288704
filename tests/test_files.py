"""Paths as people give them, and files that are read in ranges or written whole."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path

import pytest

from lazymoe.errors import LazyMoEError, SourceError
from lazymoe.files import absolute, cache, combined, existing, leads_away, read_bytes, shown, write_whole


def test_a_path_does_not_depend_on_where_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute("a/b") == tmp_path / "a" / "b"
    assert absolute(tmp_path / "c") == tmp_path / "c"
    assert absolute("~/d") == tmp_path / "home" / "d"
    assert absolute("~nobody-by-this-name/d") == tmp_path / "~nobody-by-this-name" / "d"


def test_a_path_is_shown_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / "b") == Path("a/b")
    assert shown(tmp_path.parent / "b") == tmp_path.parent / "b"


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert existing(tmp_path) == existing(tmp_path / "a" / "b") == existing(tmp_path / "file" / "c") == tmp_path


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", None, ".cache"),
        ("linux", "XDG_CACHE_HOME", "here"),
        ("darwin", None, "Library/Caches"),
        ("darwin", "XDG_CACHE_HOME", "here"),
        ("win32", None, "AppData/Local"),
        ("win32", "LOCALAPPDATA", "here"),
    ],
)
def test_the_cache_is_where_the_system_has_its_caches(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "here"))
    assert cache() == tmp_path / expected / "lazymoe"
    assert not cache().exists()


def test_a_file_that_was_cut_meanwhile_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(bytes(10))
    assert read_bytes(file, 4, 6) == bytes(6)
    with pytest.raises(LazyMoEError, match=r"weights\.safetensors: the file ended early"):
        read_bytes(file, 4, 7)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_whole(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udcff")
    assert path.read_bytes() == b"\xc3\xa9\n"
    write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff" and os.listdir(path.parent) == ["file"]


def test_a_file_that_ended_early_is_a_source_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(SourceError) as caught:
        read_bytes(tmp_path / "x", 0, 1)
    assert caught.value.problems[0].code == "source.cut"


def test_what_leads_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("private")
    snapshot, blobs = tmp_path / "hub/models--a--b/snapshots/0a1b", tmp_path / "hub/models--a--b/blobs"
    shared = tmp_path / "hub/blobs/ab"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    (blobs / "1").write_text("in a model's own store")
    (shared / "2").write_text("in the store of all models")
    (blobs / "2").symlink_to("../../blobs/ab/2")
    (snapshot / "plain").write_text("here")
    for name in ("1", "2"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (snapshot / "evil").symlink_to(tmp_path / "key")
    (blobs / "3").symlink_to(tmp_path / "key")
    (snapshot / "deep").symlink_to("../../blobs/3")
    away = {path.name for path in snapshot.iterdir() if leads_away(path, snapshot)}
    assert away == {"evil", "deep"}


@pytest.mark.parametrize("first", [b"", b"a", bytes(1000), b"some bytes in front"])
@pytest.mark.parametrize("second", [b"", b"b", bytes(70_000), b"and some behind" * 5000])
def test_checksums_of_two_parts_are_that_of_both(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
