"""Downloads: whatever goes wrong on the way, they complete by themselves, or stop with a true line and go on."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import HfApi, constants, hf_hub_download

import lazymoe.hub.client
from lazymoe import HubError
from lazymoe.files import cache
from lazymoe.hub import downloading
from lazymoe.hub.downloading import Wanted, download
from lazymoe.hub.reading import Repository, find_model

SIZE = 3_000_000
FILES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FIRST, SECOND = FILES
CHUNK = 100_000  # bytes that the client keeps in memory before it writes them
GET = f"GET .*/resolve/.*/{FIRST}"


@pytest.fixture
def hub_of_one(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    """A model of two files on a Hub, by a name of its own; hardly any waits."""
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for i, name in enumerate(FILES):
        (folder / name).write_bytes(bytes([i, *range(250)]) * (SIZE // 251))
    name = f"acme/{tmp_path.name.strip('_.-')}"
    hub.add(name, folder)
    hub.requests.clear()
    hub.sent = Counter()
    yield hub, name
    hub.faults.clear()


def find(name: str) -> Repository:
    return find_model(name, None, "base_model", ["*.json"])


def bring(found: Repository) -> None:
    download([Wanted(found, file, "base_model") for file in FILES])


def is_whole(hub: Hub, found: Repository, name: str) -> bool:
    return all((found.folder / file).read_bytes() == hub.read(name, file) for file in FILES)


PASSES = {  # kind of fault, how often, seconds
    "one 429": (429, 1, 1),
    "429 for a while": (429, 3, 0),
    "500": (500, 2, 0),
    "502": (502, 2, 0),
    "503 with Retry-After": (503, 2, 1),
    "cut": ("cut", 3, 0),
    "stalled": ("stall", 1, 3),
    "short with 200": ("short", 2, 0),
    "too long": ("long", 1, 0),
    "a bit flipped": ("flip", 1, 0),
    "late": ("slow", 1, 0.5),
}


@pytest.mark.parametrize(("kind", "times", "seconds"), PASSES.values(), ids=PASSES)
def test_what_passes_is_got_over(kind: int | str, times: int, seconds: float, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    found = find(name)
    fault = hub.fault(GET, kind, times, seconds)
    bring(found)
    assert fault.times == 0
    assert is_whole(hub, found, name)
    wasted = SIZE if kind in ("flip", "long") else 0  # what is wrong is brought anew, what is missing is added
    assert hub.sent[FIRST] <= SIZE + wasted + 4 * CHUNK and hub.sent[SECOND] <= SIZE
    assert not list(found.folder.parent.parent.rglob("*.incomplete"))


LASTS = {  # kind of fault, the line
    "429": (429, "keeps answering '.*' with status 429"),
    "500": (500, "with status 500"),
    "503": (503, "with status 503"),
    "a token that was revoked": (401, "the Hub refuses your token"),
    "gated in the middle": ("GatedRepo", "is gated"),
    "deleted": ("RepoNotFound", "no model on the Hub"),
    "404 of one shard": ("EntryNotFound", "status 404"),
    "a revision that moved": ("RevisionNotFound", "has no revision"),
    "cut": ("cut", "the download of .* keeps breaking off"),
    "a bit flipped": ("flip", "arrives, twice now, as something else"),
}


@pytest.mark.parametrize(("kind", "line"), LASTS.values(), ids=LASTS)
def test_what_lasts_is_said_and_a_rerun_goes_on(kind: int | str, line: str, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    found = find(name)
    download([Wanted(found, FIRST, "base_model")])
    hub.fault(f"GET .*/resolve/.*/{SECOND}", kind, math.inf, 0)
    with pytest.raises(HubError, match=line) as told:
        bring(found)
    assert told.value.problems[0].remedy and "\n" not in str(told.value)
    assert not (found.folder / SECOND).exists()
    hub.faults.clear()
    bring(found)
    assert is_whole(hub, found, name)
    assert hub.sent[FIRST] <= SIZE  # nothing that was whole comes twice


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_no_network(
    code: int, hub_of_one: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, name = hub_of_one
    found = find(name)

    def write(self: object, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as full:
        full.setattr(downloading._Stoppable, "write", write)
        with pytest.raises(HubError, match=f"cache, .*, can't be written .{os.strerror(code)}") as told:
            bring(found)
    assert told.value.problems[0].code == "hub.cache"
    bring(found)
    assert is_whole(hub, found, name)


def test_a_download_goes_on_in_the_middle_of_a_file(hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    found = find(name)

    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    hub.fault(GET, "stall", 1, 3)
    with pytest.raises(KeyboardInterrupt):
        download([Wanted(found, FIRST, "base_model")], stop)
    for thread in threading.enumerate():
        if "ThreadPool" in thread.name:
            thread.join()  # it hears of the stop when the Hub says something
    there = Wanted(found, FIRST, "base_model").part.stat().st_size
    assert 0 < there < SIZE
    before = hub.sent[FIRST]
    bring(found)
    assert is_whole(hub, found, name)
    assert hub.sent[FIRST] - before <= SIZE - there + CHUNK


KILLED = """
import sys
from huggingface_hub import constants
from lazymoe.hub.downloading import Wanted, download
from lazymoe.hub.reading import find_model
constants.DOWNLOAD_CHUNK_SIZE = 100_000
found = find_model(sys.argv[1], None, "base_model", ["*.json"])
print("found", flush=True)
download([Wanted(found, file, "base_model") for file in sys.argv[2:]])
"""


def test_a_download_that_was_killed_goes_on(hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    hub.fault(GET, "stall", 1, 60)
    child = subprocess.Popen([sys.executable, "-c", KILLED, name, *FILES], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "found\n"
    found = find(name)
    part = Wanted(found, FIRST, "base_model").part
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there, before = part.stat().st_size, hub.sent[FIRST]
    assert there
    bring(found)
    assert is_whole(hub, found, name)
    assert hub.sent[FIRST] - before <= SIZE - there + CHUNK
    assert not list(found.folder.parent.parent.rglob("*.incomplete"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[1000] ^= 4
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flip,
    "cut": lambda file: os.truncate(file, 1000),
    "emptied": lambda file: os.truncate(file, 0),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_was_damaged_in_the_cache_is_brought_anew(
    damage: Callable[[Path], object], hub_of_one: tuple[Hub, str]
) -> None:
    hub, name = hub_of_one
    found = find(name)
    bring(found)
    damage((found.folder / FIRST).resolve())
    bring(found)
    assert is_whole(hub, found, name)
    assert hub.sent[SECOND] <= SIZE


def test_without_a_network_damage_is_said(hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    bring(find(name))
    hub.fault(".*", "cut", math.inf)
    found = find(name)
    bring(found)  # all is there
    flip((found.folder / FIRST).resolve())
    with pytest.raises(HubError, match=f"{FIRST} of .* is damaged in the cache"):
        bring(found)


@pytest.mark.parametrize("kind", ["RepoNotFound", "GatedRepo", 503])
def test_a_whole_cache_will_do_when_the_hub_gives_nothing(kind: int | str, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    first = find(name)
    hub.fault("/api/models/|/resolve/", kind, math.inf, 0)
    with pytest.raises(HubError):
        find(name)  # config.json alone is of no use
    hub.faults.clear()
    bring(first)
    hub.fault("/api/models/|/resolve/", kind, math.inf, 0)
    found = find(name)
    bring(found)
    assert is_whole(hub, found, name) and found.commit == first.commit


def test_a_file_is_looked_at_once(hub_of_one: tuple[Hub, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # which is emptied here
    found = find(name := hub_of_one[1])
    for file in FILES:
        hf_hub_download(name, file)  # by the client alone
    looked: list[str] = []
    is_whole = downloading._is_whole
    monkeypatch.setattr(downloading, "_is_whole", lambda w, path: (looked.append(w.file), is_whole(w, path))[1])
    bring(found)
    bring(found)
    assert sorted(looked) == FILES
    shutil.rmtree(cache() / "whole")
    bring(found)
    assert len(looked) == 4


def test_files_that_the_hub_keeps_by_xet_come_as_well(hub_of_one: tuple[Hub, str], tmp_path: Path) -> None:
    hub, _ = hub_of_one
    name = f"writer/{tmp_path.name.strip('_.-')}"
    api = HfApi(token="hf_writer")
    api.create_repo(name)
    for i, file in enumerate(FILES):
        (tmp_path / "files" / file).write_bytes(bytes([9, i, *range(240)]) * (SIZE // 242))
    api.upload_folder(repo_id=name, folder_path=tmp_path / "files")
    assert hub.repos[name].commits[-1].files[FIRST].oid in hub.xet
    found = find(name)
    hub.fault(GET, "cut", 2)
    bring(found)
    assert is_whole(hub, found, name)
