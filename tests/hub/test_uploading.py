"""Uploads, step by step: what was sent is seen by nobody before the commit, and by the next upload after it.

Faults on the way are in test_publishing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

from lazymoe import HubError
from lazymoe.hub.uploading import Upload

REPO = "writer/uploaded"


@pytest.fixture
def empty(hub: Hub) -> Iterator[Hub]:
    yield hub
    hub.repos.pop(REPO, None)


def upload(private: bool = False) -> Upload:
    return Upload(REPO, "hf_writer", private)


def test_large_files_are_invisible_until_the_commit(empty: Hub, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"a" * 5000)
    first = upload()
    assert first.url == f"{empty.url}/{REPO}" and set(first.remote) <= {".gitattributes"}
    assert first.send("a.safetensors", tmp_path / "a.safetensors")
    assert "a.safetensors" not in empty.repos[REPO].commits[-1].files
    first.commit({"README.md": b"# It", "config.json": tmp_path / "a.safetensors"}, [], "First")
    assert empty.read(REPO, "a.safetensors") == empty.read(REPO, "config.json") == b"a" * 5000
    assert empty.read(REPO, "README.md") == b"# It"

    second = upload()
    assert not second.send("a.safetensors", tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"b" * 5000)
    assert second.send("b.safetensors", tmp_path / "b.safetensors")
    second.commit({"README.md": b"# Again"}, ["a.safetensors"], "Second")
    files = empty.repos[REPO].commits[-1].files
    assert "a.safetensors" not in files and {"b.safetensors", "config.json"} <= set(files)


def test_what_is_public_is_not_taken_for_private(empty: Hub) -> None:
    upload()
    assert not empty.repos[REPO].private
    with pytest.raises(HubError, match="public already") as caught:
        upload(private=True)
    assert caught.value.problems[0].code == "hub.public"


def test_what_is_private_stays_private(empty: Hub) -> None:
    upload(private=True)
    upload()
    assert empty.repos[REPO].private


def test_a_stranger_may_not_even_make_it(empty: Hub) -> None:
    with pytest.raises(HubError) as caught:
        Upload(REPO, "hf_reader", False)
    assert caught.value.problems[0].code == "hub.forbidden" and REPO not in empty.repos
