"""Requests to the Hub: tried again where waiting may help, and only there; explained truly where it doesn't."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import Hub
from huggingface_hub import HfApi

import lazymoe.hub.client
from lazymoe import HubError, LazyMoEError, OutputError
from lazymoe.errors import error
from lazymoe.hub.client import TRIES, About, ask

READING = About("base_model", "model", "acme/asked", "v1")
WRITING = About("acme/asked", "repository", "acme/asked")


@pytest.fixture
def asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub with a model, and hardly any waits."""
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.001)
    (tmp_path / "config.json").write_text("{}")
    hub.add("acme/asked", tmp_path)
    hub.requests.clear()
    yield hub
    hub.faults.clear()


def info() -> Any:
    return HfApi().model_info("acme/asked")


def times(asked: Hub) -> int:
    """How often the model was asked for, whatever else a client asks a Hub that it sees for the first time."""
    return sum("acme/asked" in request.path for request in asked.requests)


@pytest.mark.parametrize("kind", [429, 500, 502, 503, "cut"])
def test_what_may_pass_is_tried_again(asked: Hub, kind: int | str) -> None:
    fault = asked.fault("GET /api/models/acme/asked", kind, times=TRIES - 1, seconds=0)
    assert ask(READING, info).id == "acme/asked"
    assert fault.times == 0 and times(asked) == TRIES


@pytest.mark.parametrize("kind", [401, 403, 404, "RepoNotFound", "GatedRepo", "RevisionNotFound"])
def test_what_will_not_pass_is_asked_once(asked: Hub, kind: int | str) -> None:
    asked.fault("GET /api/models/acme/asked", kind, times=math.inf)
    with pytest.raises(HubError):
        ask(READING, info)
    assert times(asked) == 1


def test_what_does_not_pass_is_given_up(asked: Hub) -> None:
    asked.fault("GET /api/models/acme/asked", 503, times=math.inf, seconds=0)
    with pytest.raises(HubError) as caught:
        ask(READING, info)
    assert times(asked) == TRIES
    [problem] = caught.value.problems
    assert problem.failed and problem.code == "hub.busy"


def test_the_hub_may_say_how_long_to_wait(asked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.fault("GET /api/models/acme/asked", 429, seconds=1)
    start = time.monotonic()
    ask(READING, info)
    assert time.monotonic() - start >= 1
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 3600.0)  # and it may say that there is no need to
    asked.fault("GET /api/models/acme/asked", 429, times=3, seconds=0)
    start = time.monotonic()
    ask(READING, info)
    assert time.monotonic() - start < 60


def test_no_wait_is_endless(asked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazymoe.hub.client, "LONGEST_WAIT", 0.01)
    asked.fault("GET /api/models/acme/asked", 429, seconds=3600)
    start = time.monotonic()
    ask(READING, info)
    assert time.monotonic() - start < 60


def test_offline_by_wish_is_not_tried_again(asked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    calls: list[None] = []

    def call() -> Any:
        calls.append(None)
        return info()

    with pytest.raises(HubError, match="can't be reached") as caught:
        ask(READING, call)
    assert len(calls) == 1 and not asked.requests
    assert caught.value.problems[0].code == "hub.unreachable"
    assert caught.value.problems[0].remedy.startswith("Unset HF_HUB_OFFLINE")


def test_errors_of_our_own_pass_through(asked: Hub) -> None:
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        raise error("output.full", "there", "it is full", "Make room.")

    with pytest.raises(OutputError):
        ask(READING, call)
    assert len(calls) == 1


TRUE = {  # what goes wrong: what is said of it when a model is read, and when a repository is written
    401: (("hub.token", "the Hub refuses your token for 'acme/asked'"), ("hub.token", "the Hub doesn't know it")),
    403: (("hub.refused", "with status 403"), ("hub.forbidden", "the Hub doesn't allow this")),
    409: (("hub.refused", "with status 409"), ("hub.busy", "somebody else is changing this repository")),
    429: (("hub.busy", "with status 429"), ("hub.busy", "too many requests")),
    500: (("hub.busy", "with status 500"), ("hub.busy", "with status 500")),
    "cut": (("hub.unreachable", "can't be reached"), ("hub.unreachable", "the Hub can't be reached")),
    "GatedRepo": (("hub.gated", "'acme/asked' is gated"), ("hub.forbidden", "the Hub doesn't allow this")),
    "RepoNotFound": (("hub.not-found", "no folder and no model on the Hub by the name 'acme/asked'"),
                     ("hub.not-found", "the repository vanished")),
    "RevisionNotFound": (("hub.no-revision", "'acme/asked' has no revision 'v1'"), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRUE)
def test_messages_are_true(asked: Hub, kind: int | str) -> None:
    asked.fault("GET /api/models/acme/asked", kind, times=math.inf, seconds=0)
    for about, expected in zip((READING, WRITING), TRUE[kind], strict=True):
        if expected:
            with pytest.raises(HubError) as caught:
                ask(about, lambda: HfApi(token="hf_writer").model_info("acme/asked"))
            [problem] = caught.value.problems
            code, words = expected
            assert problem.code == code and words in problem.what
            assert "hf_writer" not in str(problem) and "\n" not in str(problem)


@pytest.mark.parametrize(
    ("about", "call", "code"),
    [
        (READING, lambda: HfApi().model_info("not a/name at all"), "hub.not-found"),
        (WRITING, lambda: HfApi(token="hf_writer").create_repo("not a/name"), "hub.bad-name"),
    ],
)
def test_impossible_names_are_not_sent(asked: Hub, about: About, call: Callable[[], Any], code: str) -> None:
    with pytest.raises(LazyMoEError) as caught:
        ask(about, call)
    assert caught.value.problems[0].code == code
    assert not asked.requests
