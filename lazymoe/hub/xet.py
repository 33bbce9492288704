"""Ranges of a model's files by Xet, where its Hub has them there and the client can, as long as that is faster than
asking for them at their addresses. Whatever goes wrong with it, the address will do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock, Timer
from typing import Any

from huggingface_hub.utils import (  # type: ignore[attr-defined]  # mypy doesn't follow how they are exported
    _runtime,
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from lazymoe.hub.client import token

TRIED = 4  # ranges that each way brings before it is known which is faster
LEAST = 1 << 20  # bytes of a range that tells something of that
TIMEOUT = 10.0  # seconds for the answer where the store is
LIMIT = 30.0  # seconds after which a range has stalled: the client's own limit is minutes


class Xet:
    """What brings ranges of one model's files by Xet, and what tells which of the two ways is faster."""

    def __init__(self) -> None:
        self._lock, self._opening = Lock(), Lock()
        self._group: Any = None
        self._lost = False
        self._begun, self._nbytes = Counter[bool](), Counter[bool]()  # by the way that `may` gives
        self._seconds = {False: 0.0, True: 0.0}

    def may(self, known: Any, nbytes: int) -> bool:
        """Choose the way for a range: by Xet or not.

        Args:
            known: the client's `XetFileData` of the file, None if it isn't there by Xet.
            nbytes: of the range.
        """
        if not known or nbytes < LEAST or self._lost or not _runtime.is_xet_available():
            return False
        with self._lock:
            if min(self._begun[False], self._begun[True]) < TRIED:
                chosen = self._begun[True] < self._begun[False]
            elif all(self._seconds.values()):
                chosen = self._nbytes[True] / self._seconds[True] > self._nbytes[False] / self._seconds[False]
            else:
                chosen = False  # of one way none has arrived yet
            self._begun[chosen] += 1
            return chosen

    def note(self, way: bool, nbytes: int, seconds: float) -> None:
        """Note how fast a range came.

        Args:
            way: as `may` gave it.
            nbytes: that came.
            seconds: in which they did.
        """
        with self._lock:
            self._nbytes[way] += nbytes
            self._seconds[way] += max(seconds, 1e-9)

    def bring(self, known: Any, size: int, begin: int, end: int, take: Callable[[bytes], None]) -> None:
        """Bring a range, or some of it from its beginning on.

        Args:
            known: the client's `XetFileData` of the file.
            size: of the file.
            begin, end: its first byte, and the one after its last.
            take: given what has arrived; a KeyboardInterrupt that it raises goes through.
        """
        try:
            import hf_xet

            group = self._open(known)
            stalled = Timer(LIMIT, self._stop)
            stalled.daemon = True
            stalled.start()
            try:
                for chunk in group.download_stream(hf_xet.XetFileInfo(known.file_hash, size), begin, end):
                    take(chunk)
            finally:
                stalled.cancel()
        except Exception:  # hf_xet's own, of any kind
            self._lost = True

    def _open(self, known: Any) -> Any:
        """Find the store; one for all files of the model."""
        from huggingface_hub.utils import _xet

        with self._opening:
            if self._group is None:
                headers = build_hf_headers(token=token())
                session = _xet.get_xet_session()  # type: ignore[no-untyped-call]  # an old client has none
                response = get_session().get(known.refresh_route, headers=headers, timeout=TIMEOUT)
                hf_raise_for_status(response)
                store = _xet.parse_xet_connection_info_from_headers(response.headers)
                assert store
                self._group = session.new_download_stream_group(
                    endpoint=store.endpoint,
                    token=store.access_token,
                    token_expiry_unix_secs=store.expiration_unix_epoch,
                    token_refresh_url=known.refresh_route,
                    token_refresh_headers=headers,
                    custom_headers=_xet.xet_headers_without_auth(headers),
                )
            return self._group

    def _stop(self) -> None:
        """Let all ranges that are on their way end as they are."""
        self._lost = True
        self._group.abort()
