"""Ranges by Xet: the genuine hf_xet reads them from a store; which way is faster is found out, and either will do."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Hub
from huggingface_hub import HfApi
from huggingface_hub.utils import _xet

import lazymoe.hub.xet
from lazymoe.hub.ranges import Ranges
from lazymoe.hub.reading import find_model
from lazymoe.hub.xet import TRIED, Xet

pytestmark = pytest.mark.skipif(not hasattr(_xet, "get_xet_session"), reason="this client has no streams by Xet")
FILE = "model.safetensors"
DATA = b"".join(i.to_bytes(4, "little") for i in range(750_000))
PART = 100_000  # bytes, of 30


@pytest.fixture
def hub_of_one(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    """A model of one file, which came by Xet, on a Hub, by a name of its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(lazymoe.hub.xet, "LEAST", PART)
    (tmp_path / FILE).write_bytes(DATA)
    name, api = f"writer/{tmp_path.name.strip('_.-')}", HfApi()
    api.create_repo(name)
    api.upload_file(path_or_fileobj=tmp_path / FILE, path_in_repo=FILE, repo_id=name)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=name)
    clean_hub.requests.clear()
    clean_hub.sent = Counter()
    yield clean_hub, name
    clean_hub.cas = ""


def read_all(name: str) -> Ranges:
    ranges = find_model(name, None, "base_model", ["*.json"]).ranges
    assert ranges
    parts = [bytes(ranges.read(FILE, at, PART)) for at in range(0, len(DATA), PART)]
    assert b"".join(parts) == DATA
    return ranges


def test_each_way_is_tried(hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    read_all(name)
    assert TRIED * PART <= hub.sent_of(FILE) <= len(DATA) - TRIED * PART


def test_the_faster_way_is_taken() -> None:
    for fast in (False, True):
        xet, taken = Xet(), Counter[bool]()
        for _ in range(100):
            way = xet.may("known", PART**2)
            taken[way] += 1
            xet.note(way, PART, 1 if way == fast else 2)
        assert taken == {fast: 100 - TRIED, not fast: TRIED}
        assert not xet.may("known", 10)  # what is little tells nothing
        assert not xet.may(None, PART**2)


def test_while_nothing_has_come_by_xet_the_address_is_asked() -> None:
    xet = Xet()
    ways = [xet.may("known", PART**2) for _ in range(2 * TRIED)]
    assert Counter(ways) == {True: TRIED, False: TRIED}
    xet.note(False, PART, 100)
    assert not xet.may("known", PART**2)


def test_without_xet_all_comes_from_the_address(hub_of_one: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, name = hub_of_one
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    read_all(name)
    assert hub.sent_of(FILE) == len(DATA)


@pytest.mark.parametrize("kind", [403, 503, "cut", "no store"])
def test_a_store_that_fails_costs_nothing(kind: int | str, hub_of_one: tuple[Hub, str], tmp_path: Path) -> None:
    hub, name = hub_of_one
    if kind == "no store":
        hub.cas = f"local://{tmp_path}/nothing"
    else:
        hub.fault("GET .*/xet-read-token/", kind, 100, 0)
    ranges = read_all(name)
    assert hub.sent_of(FILE) == len(DATA)
    tokens = len([r for r in hub.requests if "xet-read-token" in r.path])
    assert bytes(ranges.read(FILE, 0, PART)) == DATA[:PART]
    assert len([r for r in hub.requests if "xet-read-token" in r.path]) == tokens  # it isn't asked for again


def test_a_store_that_stalls_is_left(hub_of_one: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, name = hub_of_one
    monkeypatch.setattr(lazymoe.hub.xet, "LIMIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.cas = f"http://127.0.0.1:{silent.getsockname()[1]}"
        read_all(name)
        silent.settimeout(0)
        silent.accept()  # it was asked
    assert hub.sent_of(FILE) == len(DATA)
