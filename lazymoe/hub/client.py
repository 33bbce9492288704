"""A request to the Hub: tried again where waiting may help, and explained where it does not."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub import errors as hf
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # mypy doesn't follow how they are exported
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from lazymoe.errors import LazyMoEError, error
from lazymoe.progress import switched_off

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
BILLING_PAGE = "https://huggingface.co/settings/billing"
OTHER = "with --on hf-jobs:FLAVOR (in the notebook: by its name)"
LOGIN = "log in with 'hf auth login' (in the notebook: by a token in step 1)"
TRIES = 5
WAIT = 1.0  # seconds before the second try; doubled each time, unless the Hub says how long
LONGEST_WAIT = 60.0
NETWORK = ("httpx", "httpcore", "requests", "urllib3")  # what the client's versions stand on, httpx2 among them
LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)  # of a disk, not of a network
T = TypeVar("T")
_typed: str | None = None  # the token that was given to this process, if any, and to no file


def use_token(token: str) -> None:
    """Use a token for all that is read from now on, in this process alone.

    Args:
        token: the token.
    """
    global _typed
    _typed = token


def token() -> str | None:
    """Give the token that was given to this process; None for the one that the client finds by itself."""
    return _typed


def without_bars() -> AbstractContextManager[None]:
    """Keep the client from drawing bars of its own."""
    return switched_off(not are_progress_bars_disabled(), disable_progress_bars, enable_progress_bars)


@dataclass(frozen=True)
class About:
    """What a request is about, for the messages.

    Attributes:
        where: how they name the place it was asked for.
        kind: ``model``, ``data set``, or ``token``; ``repository`` where something is written; ``job`` of a machine
            that is rented.
        name: of the repository, or of the job.
        revision: that was asked for.
    """

    where: str
    kind: str
    name: str = ""
    revision: str | None = None


def ask(about: About, call: Callable[[], T], tries: int = TRIES) -> T:
    """Make a request, again where waiting may help. All of them can be repeated without harm.

    None of the client's words are kept in messages: they are not ours to vouch for, and a token might be among them.

    Args:
        about: what it is about, for the messages.
        call: makes the request.
        tries: how many times at most.

    Returns:
        Its result.

    Raises:
        HubError: if it keeps failing, with what to do.
    """
    for again in range(1, tries + 1):
        try:
            return call()
        except LazyMoEError:
            raise
        except Exception as e:
            if again == tries or not _may_pass(e):
                raise explained(about, e) from None
            wait = _retry_after(e)
            pause(min(WAIT * 2 ** (again - 1) if wait is None else wait, LONGEST_WAIT))
    raise AssertionError("unreachable")


def pause(seconds: float) -> None:
    """Wait, a little at a time: a thread can be stopped only in between.

    Args:
        seconds: how long.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


def is_unreachable(e: BaseException) -> bool:
    """Tell whether it was the connection that failed, or there is none by the user's own wish.

    Args:
        e: what a request raised.
    """
    if isinstance(e, hf.OfflineModeIsEnabled):
        return True
    if _status(e) is not None or (isinstance(e, OSError) and e.errno in LOCAL):
        return False
    return isinstance(e, OSError) or type(e).__module__.startswith(NETWORK)


def _mended(e: BaseException) -> str:
    """Say how the Hub can be reached again."""
    return "Unset HF_HUB_OFFLINE" if isinstance(e, hf.OfflineModeIsEnabled) else "Check the network"


def _may_pass(e: BaseException) -> bool:
    """Tell whether the same request may succeed a little later."""
    status = _status(e)
    if status is None:
        return is_unreachable(e) and not isinstance(e, (hf.OfflineModeIsEnabled, hf.HFValidationError))
    return status == 429 or status >= 500


def _status(e: BaseException) -> int | None:
    """Find the status of the answer that an exception, or what it came of, is about; None if there was no answer."""
    status = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    return _status(e.__cause__) if e.__cause__ else None


def _retry_after(e: BaseException) -> float | None:
    """Read how many seconds the Hub asks to wait for; None if it doesn't say."""
    headers = getattr(getattr(e, "response", None), "headers", {})
    asked = str(headers.get("Retry-After", ""))
    return float(asked) if asked.isdigit() else None


def explained(about: About, e: Exception) -> LazyMoEError:
    """Explain to a person what an exception of the client means.

    Args:
        about: what the request was about.
        e: the exception.
    """
    if isinstance(e, OSError) and e.errno in LOCAL:
        what = f"the Hub's cache, {constants.HF_HUB_CACHE}, can't be written ({os.strerror(e.errno)})"
        remedy = (
            "Make room there, or let HF_HOME name a folder on another disk; then run it again: it goes on from here."
        )
        return error("hub.cache", about.where, what, remedy)
    if isinstance(e, hf.HFValidationError):
        return _invalid(about)
    if about.kind in ("model", "data set"):
        return _not_read(about, e)
    return (_not_run if about.kind == "job" else _not_written)(about, e)


def _invalid(about: About) -> LazyMoEError:
    if about.kind == "repository":
        what = f"'{about.name}' isn't a name the Hub takes"
        remedy = "Use letters, digits, '-', '_' and '.', at most 96 of them."
        return error("hub.bad-name", "repository", what, remedy)
    return _not_found(about)


def _not_found(about: About) -> LazyMoEError:
    folder = "folder and no " if about.kind == "model" else ""
    what = f"there is no {folder}{about.kind} on the Hub by the name '{about.name}'"
    return error("hub.not-found", about.where, what, f"Check the spelling; if it is private, {LOGIN}.")


def _not_read(about: About, e: Exception) -> LazyMoEError:
    """Explain why a model or a data set can't be read."""
    if isinstance(e, hf.GatedRepoError):
        page = f"https://huggingface.co/{'datasets/' if about.kind == 'data set' else ''}{about.name}"
        remedy = f"Open {page}, accept its conditions, and {LOGIN}."
        return error("hub.gated", about.where, f"'{about.name}' is gated", remedy)
    if isinstance(e, hf.RevisionNotFoundError):
        what = f"'{about.name}' has no revision '{about.revision}'"
        return error("hub.no-revision", about.where, what, "Check what follows the '@'.")
    status = _status(e)
    if isinstance(e, hf.RepositoryNotFoundError):
        return _not_found(about)
    if status == 401:
        what = f"the Hub refuses your token for '{about.name}'"
        return error("hub.token", about.where, what, f"Unset HF_TOKEN, or {LOGIN}.")
    if status is not None and (status == 429 or status >= 500):
        what = f"the Hub keeps answering '{about.name}' with status {status}"
        return error("hub.busy", about.where, what, "Try again in a few minutes: it goes on from here.")
    if status is not None or not is_unreachable(e):
        answer = (
            f"with status {status}" if status is not None else f"in a way that can't be followed ({type(e).__name__})"
        )
        what = f"the Hub answered '{about.name}' {answer}"
        return error("hub.refused", about.where, what, "Look at its page on the Hub.")
    what = f"'{about.name}' isn't in the cache and the Hub can't be reached ({type(e).__name__})"
    return error("hub.unreachable", about.where, what, f"{_mended(e)}, or name a folder.")


def _not_written(about: About, e: Exception) -> LazyMoEError:
    """Explain why an account can't be asked for, or a repository not written."""
    status, where = _status(e), about.where
    if status is None and not is_unreachable(e):
        what = f"the upload failed ({type(e).__name__})"
        return error("hub.failed", where, what, "Run it again: it goes on from here.")
    if status is None:
        remedy = f"{_mended(e)} and run it again: it goes on from here."
        return error("hub.unreachable", where, "the Hub can't be reached", remedy)
    if status == 401:
        remedy = f"Copy it again from {TOKENS_PAGE}, whole, or make a new one."
        return error("hub.token", "token", "the Hub doesn't know it", remedy)
    if status == 403:
        remedy = f"Give the token write access to it at {TOKENS_PAGE}."
        return error("hub.forbidden", where, "the Hub doesn't allow this", remedy)
    if status == 404:
        return error("hub.not-found", where, "the repository vanished", "Run it again: it is made anew.")
    if status in (409, 412):
        what = "somebody else is changing this repository"
        return error("hub.busy", where, what, "Run it again: it goes on from here.")
    if status == 429:
        what = "the Hub asks for a pause: too many requests"
        return error("hub.busy", where, what, "Run it again in a few minutes.")
    what = f"the Hub answered with status {status}"
    return error("hub.busy", where, what, "Run it again in a minute: it goes on from here.")


def _not_run(about: About, e: Exception) -> LazyMoEError:
    """Explain why a job can't be started, asked for or stopped."""
    status, where = _status(e), about.where
    if status == 402:
        remedy = f"Add some at {BILLING_PAGE}, or choose a cheaper machine {OTHER}."
        return error("hub.no-credit", where, "your account has no credit left for it", remedy)
    if status == 403:
        remedy = f"Give it the right to start and manage jobs at {TOKENS_PAGE}."
        return error("hub.token", "token", "it may not run jobs", remedy)
    if status == 404 and about.name:
        what = "there is no such job on the Hub any more"
        return error("hub.job-lost", where, what, "Run the same command again: it starts another.")
    if status == 404:
        what = "this Hub has no machines to rent"
        return error("hub.refused", where, what, "Unset HF_ENDPOINT, if it names another Hub than Hugging Face's own.")
    if status == 429:
        what = "the Hub allows no more jobs or requests of yours for now"
        return error("hub.busy", where, what, "Wait until a job of yours has ended, and run the same command again.")
    if status in (400, 409, 422):
        what = f"the Hub doesn't take this job (status {status})"
        return error("hub.refused", where, what, f"Choose another machine {OTHER}.")
    if status is None and not is_unreachable(e):
        what = f"the job can't be run ({type(e).__name__})"
        return error("hub.failed", where, what, "Run the same command again: a job that has started, it follows.")
    if status is None:
        remedy = f"{_mended(e)} and run the same command again: a job that has started goes on, and is followed."
        return error("hub.unreachable", where, "the Hub can't be reached", remedy)
    return _not_written(about, e)
