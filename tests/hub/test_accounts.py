"""Whose token it is, and what it may do."""

from __future__ import annotations

import huggingface_hub
import pytest
from hub_server import Hub, User

import lazymoe.hub.client
from lazymoe import HubError
from lazymoe.hub.accounts import Account, account, find_token

WRITER = Account("writer", ("acme",), ("writer", "acme"))


def test_accounts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert find_token() == ("hf_writer", "this machine's settings")
    assert account("hf_writer") == WRITER
    assert account("hf_reader").writable == ()
    monkeypatch.setitem(hub.tokens, "hf_fine", User("writer", "fineGrained", ("acme",)))
    assert account("hf_fine").name == "writer" and "writer" not in account("hf_fine").writable


def test_there_may_be_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert find_token() is None


def test_a_token_that_the_hub_does_not_know(hub: Hub) -> None:
    with pytest.raises(HubError, match="token: the Hub doesn't know it") as caught:
        account("hf_nobody")
    assert "hf_nobody" not in str(caught.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.01)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the Hub can't be reached"):
        account("hf_writer")


@pytest.mark.parametrize("repo", ["writer/moe", "acme/moe"])
def test_what_may_be_written(repo: str) -> None:
    WRITER.check_right(repo)


RIGHTS = {
    "a name alone": (WRITER, "moe", "hub.bad-name", "Use a name such as 'writer/my-moe'."),
    "too long a path": (WRITER, "writer/a/b", "hub.bad-name", "isn't a Hub id"),
    "nothing after the slash": (WRITER, "writer/", "hub.bad-name", "isn't a Hub id"),
    "a stranger": (WRITER, "stranger/moe", "hub.forbidden", "Use one of: writer/moe, acme/moe."),
    "a reader": (Account("reader", (), ()), "reader/moe", "hub.token", "it may only read"),
    "a finer token": (Account("you", (), ("you/one",)), "you/moe", "hub.token", "it may not write to 'you'"),
    "a finer token elsewhere": (Account("you", (), ("you/one",)), "x/moe", "hub.forbidden", "Use one of: you/one."),
}


@pytest.mark.parametrize("case", RIGHTS)
def test_what_may_not_is_told_with_what_may(case: str) -> None:
    who, repo, code, words = RIGHTS[case]
    with pytest.raises(HubError) as caught:
        who.check_right(repo)
    [problem] = caught.value.problems
    assert problem.code == code and words in str(problem)


def test_a_finer_token_may_write_to_its_own_repository() -> None:
    Account("you", (), ("you/one",)).check_right("you/one")
