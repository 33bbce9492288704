"""Ranges: whatever goes wrong on the way, they come by themselves, or stop with a true line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import HfApi, constants

import lazymoe.hub.client
from lazymoe import HubError, LazyMoEError
from lazymoe.hub.ranges import CHUNK, Ranges
from lazymoe.hub.reading import find_model

FILE = "model.safetensors"
DATA = bytes(range(251)) * 12_000
BEGIN, LENGTH = 1_000_001, 1_500_000
GET = f"GET .*/{FILE}"


@pytest.fixture
def hub_of_one(clean_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    """A model of one file on a Hub, by a name of its own; hardly any waits."""
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / FILE).write_bytes(DATA)
    name = f"acme/{tmp_path.name.strip('_.-')}"
    clean_hub.add(name, folder)
    clean_hub.requests.clear()
    clean_hub.sent = Counter()
    yield clean_hub, name
    clean_hub.uses = 0


def find(name: str) -> Ranges:
    found = find_model(name, None, "base_model", ["*.json"]).ranges
    assert found
    return found


def is_right(ranges: Ranges) -> bool:
    return bytes(ranges.read(FILE, BEGIN, LENGTH)) == DATA[BEGIN : BEGIN + LENGTH]


PASSES = {  # kind of fault, how often, seconds, and whether what has arrived is of use
    "429 with Retry-After": (429, 2, 1, True),
    "500": (500, 3, 0, True),
    "503 with Retry-After": (503, 1, 1, True),
    "cut": ("cut", 3, 0, True),
    "stalled": ("stall", 1, 3, True),
    "short": ("short", 2, 0, True),
    "late": ("slow", 1, 0.2, True),
    "too long": ("long", 1, 0, False),
    "the range ignored": ("whole", 1, 0, True),
    "another range": ("shifted", 2, 0, True),
}


@pytest.mark.parametrize("uses", [0, 100], ids=["the Hub itself", "another server"])
@pytest.mark.parametrize(("kind", "times", "seconds", "useful"), PASSES.values(), ids=PASSES)
def test_what_passes_is_got_over(
    kind: int | str, times: int, seconds: float, useful: bool, uses: int, hub_of_one: tuple[Hub, str]
) -> None:
    hub, name = hub_of_one
    hub.uses = uses
    fault = hub.fault(f"GET .*/(resolve|signed)/.*/{FILE}", kind, times, seconds)
    assert is_right(find(name))
    assert fault.times == 0
    if kind not in ("whole", "shifted"):  # of these it stops at the headers; how much was sent by then is a race
        lost = times * CHUNK if kind in ("cut", "stall") else 0  # requests gives whole chunks alone
        assert 0 <= hub.sent_of(FILE) - LENGTH * (1 if useful else 2) <= lost


LASTS = {  # kind of fault, the line
    "429": (429, "keeps answering '.*' with status 429"),
    "503": (503, "with status 503"),
    "a token that was revoked": (401, "the Hub refuses your token"),
    "gated in the middle": ("GatedRepo", "is gated"),
    "deleted": ("RepoNotFound", "no model on the Hub"),
    "a revision that moved": ("RevisionNotFound", "has no revision"),
    "cut": (
        "cut",
        f"the connection to the Hub fails, or breaks off, whenever {FILE} of '.*' is read. Check the network and run",
    ),
    "short": ("short", "breaks off"),
    "the range ignored": ("whole", f"asked for a part of {FILE} of '.*', .* sends the whole. .*--source local"),
    "another range": ("shifted", "sends another part"),
    "too long": ("long", "sends more than that"),
}


@pytest.mark.parametrize(("kind", "line"), LASTS.values(), ids=LASTS)
def test_what_lasts_is_said(kind: int | str, line: str, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    ranges = find(name)
    hub.fault(GET, kind, math.inf, 0)
    with pytest.raises(HubError, match=line) as told:
        # each try brings half of what is missing
        ranges.read(FILE, BEGIN, LENGTH)
    assert told.value.problems[0].where == "base_model" and "\n" not in str(told.value)
    hub.faults.clear()
    assert is_right(ranges)


@pytest.mark.parametrize("uses", [1, 2, 1000])
def test_an_address_that_expires_is_asked_for_again(uses: int, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    hub.uses = uses
    ranges, step = find(name), 100_000
    parts = [bytes(ranges.read(FILE, at, min(step, len(DATA) - at))) for at in range(0, len(DATA), step)]
    assert b"".join(parts) == DATA
    heads = [r for r in hub.requests if r.method == "HEAD" and FILE in r.path]
    assert len(heads) == -(-len(parts) // uses)  # once for as long as it is good
    assert hub.sent_of(FILE) == len(DATA)


def test_an_address_that_is_never_good_is_said(hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    hub.uses = 1000
    hub.fault(f"/signed/.*/{FILE}", 403, math.inf)
    with pytest.raises(HubError, match=r"the Hub answered '.*' with status 403"):
        find(name).read(FILE, BEGIN, LENGTH)
    assert len(hub.requests) < 10


@pytest.mark.parametrize("uses", [0, 1], ids=["the Hub itself", "another server"])
def test_a_private_model_is_read_and_the_token_shown_to_the_hub_alone(
    uses: int, hub_of_one: tuple[Hub, str], tmp_path: Path
) -> None:
    hub, name = hub_of_one
    hub.add(name, tmp_path / "files", private=True)
    hub.uses = uses
    assert is_right(find(name))  # the other server refuses whoever shows it one
    assert is_right(find(name))


@pytest.mark.parametrize("uses", [0, 1], ids=["the Hub itself", "another server"])
def test_a_token_that_is_revoked_in_the_middle(
    uses: int, hub_of_one: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, name = hub_of_one
    hub.add(name, tmp_path / "files", private=True)
    hub.uses = uses
    ranges = find(name)
    assert is_right(ranges)
    with monkeypatch.context() as revoked:
        revoked.setattr(hub, "tokens", {})
        with pytest.raises(HubError, match="the Hub refuses your token"):
            ranges.read(FILE, BEGIN, LENGTH)
    assert is_right(ranges)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_file_that_is_changed_in_the_middle_is_refused(method: str, hub_of_one: tuple[Hub, str]) -> None:
    hub, name = hub_of_one
    ranges = find(name)
    hub.fault(f"{method} .*/{FILE}", "retag", math.inf)
    with pytest.raises(LazyMoEError, match=f"{FILE} of '{name}' isn't what the Hub had when this began") as told:
        ranges.read(FILE, BEGIN, LENGTH)
    assert told.value.problems[0].code == "source.changed"
    assert hub.sent_of(FILE) <= LENGTH  # at the first sight of it


@pytest.mark.usefixtures("hub_of_one")
def test_files_that_the_hub_keeps_by_xet_are_read_as_well(tmp_path: Path) -> None:
    name = f"writer/{tmp_path.name.strip('_.-')}"
    api = HfApi(token="hf_writer")
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=tmp_path / "files")
    assert is_right(find(name))
