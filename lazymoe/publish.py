"""Onto the Hugging Face Hub: who is asking, may they write there, then the files, then one commit that shows them.

Weights are sent first, where nobody sees them; the commit makes the model visible whole. So a publishing that breaks
off leaves nothing half-made, and the next one sends only what is missing. The client retries some of its requests; the
others are retried here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub import errors as hf

from lazymoe.card import render
from lazymoe.check import absolute
from lazymoe.errors import LazyMoEError, error
from lazymoe.families import FAMILIES
from lazymoe.merge import RECIPE, RECORD
from lazymoe.progress import Progress, silent
from lazymoe.report import FILE, PICTURES
from lazymoe.source import CARD, TOKENIZER_FILES

INDEX = "model.safetensors.index.json"
CODE = tuple(family.code for family in FAMILIES if family.code)  # LazyMoE's own; nobody else's goes up
SMALL = ("config.json", "generation_config.json", INDEX, *TOKENIZER_FILES, *CODE,
         RECIPE, RECORD, FILE, *PICTURES)  # fmt: skip
WEIGHTS = "model-*.safetensors"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TRIES = 5
WAIT = 1.0  # seconds before the second try; doubled each time, unless the Hub says how long
LONGEST_WAIT = 60.0
NETWORK = ("httpx", "httpcore", "requests", "urllib3")  # what the client's versions stand on, httpx2 among them
T = TypeVar("T")


@dataclass(frozen=True)
class Account:
    """Whose token it is.

    Attributes:
        name: of the user.
        organizations: where they may write too.
        writable: the namespaces, or single repositories, that the token may write to; with a read-only token none.
    """

    name: str
    organizations: tuple[str, ...]
    writable: tuple[str, ...]


def find_token() -> tuple[str, str] | None:
    """A token that is there already, and where from: the client's store (variable, file, Colab secret) or Kaggle's."""
    if token := get_token():
        return token, "this machine's settings"
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret("HF_TOKEN"), "Kaggle's secrets"
    except Exception:  # not on Kaggle, or no such secret: each has its own exception
        return None


def account(token: str) -> Account:
    """Ask the Hub whose token it is.

    Raises:
        LazyMoEError: if the Hub doesn't know it or can't be reached.
    """
    with _explained("token"):
        found = _retried(lambda: HfApi(token=token).whoami())
    orgs = [org for org in found.get("orgs", []) if org.get("roleInOrg") != "read"]
    organizations = tuple(org["name"] for org in orgs)
    access = found.get("auth", {}).get("accessToken", {})
    writable: tuple[str, ...] = (found["name"], *organizations)
    if access.get("role") == "read":
        writable = ()
    elif access.get("role") == "fineGrained":
        scopes = access.get("fineGrained", {}).get("scoped", [])
        writable = tuple(s["entity"]["name"] for s in scopes if "repo.write" in s.get("permissions", []))
    return Account(found["name"], organizations, writable)


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    template: str | Path | None = None,
    token: str | None = None,
    progress: Progress = silent,
) -> str:
    """Put a finished mixture on the Hub, with its card. Again after a change: only what changed is sent.

    Args:
        folder: the mixture's.
        repo: the Hub id, ``user-or-organization/name``; made if it isn't there.
        private: whether a new repository can be seen by its owner only.
        license, template: of the card, see `lazymoe.card.render`.
        token: with the right to write; by default the one that `find_token` finds.
        progress: told of the bytes of weights sent, stage ``upload``.

    Returns:
        The address of its page.

    Raises:
        LazyMoEError: if the folder isn't a finished mixture, the token may not write there, the name is taken by
            something else, or the Hub can't be reached or keeps failing.
    """
    folder = absolute(folder)
    card = render(folder, repo, license=license, template=template)
    weights = _weights(folder)
    if token is None and (found := find_token()):
        token = found[0]
    if not token:
        raise error("token", "there is none", f"Make one at {TOKENS_PAGE} and store it with 'hf auth login'.")
    _check_right(account(token), repo)

    api = HfApi(token=token)
    with _explained(repo):
        there = _retried(lambda: _find(api, repo))
        if there is None:
            _retried(lambda: api.create_repo(repo, private=private, exist_ok=True))
            there = _retried(lambda: api.model_info(repo, files_metadata=True))
        _check_ours(there, repo, private)
        remote = {s.rfilename: s.lfs.sha256 if s.lfs else None for s in there.siblings or []}

        total, sent = sum(path.stat().st_size for path in weights), 0
        progress("upload", sent, total)
        operations: list[Any] = []
        for path in weights:
            shard = CommitOperationAdd(path.name, path)
            if remote.get(path.name) != shard.upload_info.sha256.hex():
                _retried(partial(api.preupload_lfs_files, repo, [shard]))
                operations.append(shard)
            sent += path.stat().st_size
            progress("upload", sent, total)
        stale = [n for n in remote if Path(n).match(WEIGHTS) and folder / n not in weights]
        operations += [CommitOperationDelete(name) for name in stale]
        small = [p for pattern in SMALL for p in sorted(folder.glob(pattern)) if p.is_file()]
        operations += [CommitOperationAdd(p.relative_to(folder).as_posix(), p) for p in dict.fromkeys(small)]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        _retried(lambda: api.create_commit(repo, operations, commit_message="A mixture of experts by LazyMoE"))
    return f"{api.endpoint}/{repo}"


def _weights(folder: Path) -> list[Path]:
    """The files of weights that the index names, all of them there."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    weights = [folder / name for name in sorted(set(index["weight_map"].values()))]
    if lost := [path.name for path in weights if not path.is_file()]:
        raise error(folder, f"it lacks {lost[0]}", "Delete it, and merge again.")
    return weights


def _check_right(who: Account, repo: str) -> None:
    """Whether somebody may write to a repository, before a byte is sent."""
    namespace, slash, name = repo.partition("/")
    if not slash or not name or "/" in name:
        raise error("repository", f"'{repo}' isn't a Hub id", f"Use a name such as '{who.name}/my-moe'.")
    if not who.writable:
        raise error("token", "it may only read", f"Make one with write access at {TOKENS_PAGE}.")
    if not {namespace, repo} & set(who.writable):
        if namespace in (who.name, *who.organizations):
            raise error("token", f"it may not write to '{namespace}'", f"Give it that right at {TOKENS_PAGE}.")
        what = f"'{namespace}' is not you ({who.name}), nor an organization where you may write"
        free = ", ".join(place if "/" in place else f"{place}/{name}" for place in who.writable)
        raise error("repository", what, f"Use one of: {free}.")


def _find(api: HfApi, repo: str) -> Any:
    """A repository with its files, None if there is none yet."""
    try:
        return api.model_info(repo, files_metadata=True)
    except hf.RepositoryNotFoundError as e:
        if e.response is not None and e.response.status_code == 404:
            return None
        raise


def _check_ours(there: Any, repo: str, private: bool) -> None:
    """Whether a repository is free for this mixture."""
    files = {s.rfilename for s in there.siblings or []} - {".gitattributes", CARD}
    if files and RECORD not in files:
        what = "this repository holds something that LazyMoE didn't make"
        raise error(repo, what, "Choose another name, or empty the repository first.")
    if private and there.private is False:
        raise error(repo, "this repository is public already", "Make it private on its settings page, or rename yours.")


def _retried(call: Callable[[], T]) -> T:
    """The result of a request, tried again where waiting may help. All of them can be repeated without harm."""
    for again in range(TRIES):
        try:
            return call()
        except Exception as e:
            status = _status(e)
            busy = status == 429 or (status is not None and status >= 500)
            broken = status is None and _is_network(e)
            if again == TRIES - 1 or not (busy or broken):
                raise
            asked = "" if status is None else str(e.response.headers.get("Retry-After", ""))  # type: ignore[attr-defined]
            time.sleep(min(float(asked) if asked.isdigit() else WAIT * 2**again, LONGEST_WAIT))
    raise AssertionError("unreachable")


def _status(e: BaseException) -> int | None:
    """The status of the answer that an exception is about, None if there was no answer."""
    return getattr(getattr(e, "response", None), "status_code", None)


def _is_network(e: BaseException) -> bool:
    """Whether it was the connection that failed."""
    return isinstance(e, OSError) or type(e).__module__.startswith(NETWORK)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn the client's exceptions into a line that says what to do. None of its words are kept: they are not ours to
    vouch for, and a token might be among them."""
    try:
        yield
    except LazyMoEError:
        raise
    except hf.HFValidationError:
        what = f"'{where}' isn't a name the Hub takes"
        raise error("repository", what, "Use letters, digits, '-', '_' and '.', at most 96 of them.") from None
    except Exception as e:
        status = _status(e)
        if status is not None or _is_network(e):
            raise _refused(where, status) from None
        raise error(where, f"the upload failed ({type(e).__name__})", "Publish again: it goes on from here.") from None


def _refused(where: str, status: int | None) -> LazyMoEError:
    """What an HTTP status means for someone who publishes."""
    if status is None:
        return error(where, "the Hub can't be reached", "Check the network and publish again: it goes on from here.")
    if status == 401:
        return error("token", "the Hub doesn't know it", f"Copy it again from {TOKENS_PAGE}, whole, or make a new one.")
    if status == 403:
        return error(where, "the Hub doesn't allow this", f"Give the token write access to it at {TOKENS_PAGE}.")
    if status == 404:
        return error(where, "the repository vanished", "Publish again to make it anew.")
    if status in (409, 412):
        return error(where, "somebody else is changing this repository", "Publish again: it goes on from here.")
    if status == 429:
        return error(where, "the Hub asks for a pause: too many requests", "Publish again in a few minutes.")
    return error(where, f"the Hub answered with status {status}", "Publish again in a minute: it goes on from here.")
