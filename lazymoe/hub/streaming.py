"""A large file that goes up while it is being made, by Xet's streams, where the client has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import _runtime

BLOCK = 1 << 23  # bytes that are handed over at a time


class Stream:
    """The bytes of a file, which nobody sees before they are committed.

    Attributes:
        nbytes: how many were handed over.
    """

    def __init__(self, commit: Any, name: str) -> None:
        self._commit, self._stream = commit, commit.start_upload_stream(name=name)
        self.nbytes = 0

    def send(self, path: Path, size: int) -> None:
        """Hand over what is new of the first bytes of the file, so many."""
        with open(path, "rb", buffering=0) as f:
            f.seek(self.nbytes)
            while block := f.read(min(BLOCK, size - self.nbytes)):
                self._stream.write(block)
                self.nbytes += len(block)

    def finish(self) -> str:
        """Wait until all of it is there, and give its SHA-256."""
        sha256: str = self._stream.finish().xet_info.sha256
        self._commit.wait_to_finish()
        return sha256


def open_stream(api: HfApi, repo: str, name: str) -> Stream | None:
    """Begin to send a file of which not all is there yet; None where that can't be done.

    Args:
        api: with a token that may write.
        repo: the Hub id.
        name: what it is called there.
    """
    if not _runtime.is_xet_available() or os.name == "nt":  # which gives no file a new name while it is read
        return None
    try:
        from huggingface_hub.utils import _xet

        # the client's own session: what that keeps on the disk, it locks
        session, kind = _xet.get_xet_session(), _xet.XetTokenType.WRITE  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError):  # a client of before 1.0
        return None
    headers = api._build_hf_headers()
    url = _xet.xet_connection_info_refresh_url(
        token_type=kind, repo_id=repo, repo_type="model", revision="main", endpoint=api.endpoint
    )
    commit = session.new_upload_commit(
        token_refresh_url=url, token_refresh_headers=headers, custom_headers=_xet.xet_headers_without_auth(headers)
    )
    return Stream(commit, name)
