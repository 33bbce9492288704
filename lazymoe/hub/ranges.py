"""Reading ranges of a model's files on the Hub: at one commit, of the size and the hash that the Hub has for them.

A file's address is asked for once, and again when it expires: behind it there may be a server other than the Hub, which
is shown no token. What breaks off goes on where it stopped. The hash of a whole file can't be held against a part.
Where a file is there by Xet too, it comes in whichever way is faster.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub import errors as hf
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # mypy doesn't follow how they are exported
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from lazymoe.errors import HubError, LazyMoEError, error
from lazymoe.hub.client import About, ask, token
from lazymoe.hub.xet import Xet

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
CHUNK = 1 << 18  # bytes between two looks at whether somebody stopped it
EXPIRED = (400, 401, 403, 404, 410)  # what servers say of an address that was good a while ago


class Place(NamedTuple):
    """Where a tensor lies: its file, its first byte and the one after its last, in bytes from the file's start."""

    file: str
    begin: int
    end: int


@dataclass
class _Transfer:
    """Bytes on their way: those wanted, those that have arrived, and what was odd about the last answer."""

    wanted: Place
    stopped: Event | None
    arrived: bytearray = field(default_factory=bytearray)
    odd: str = ""

    def look(self) -> None:
        """Stop if nobody wants it any more."""
        if self.stopped and self.stopped.is_set():
            raise KeyboardInterrupt

    def take(self, chunk: bytes) -> None:
        """Take what has arrived; see to it that it isn't more than was asked for."""
        self.look()
        self.arrived += chunk
        if len(self.arrived) > self.wanted.end - self.wanted.begin:
            raise self.refuse("more than that")

    def refuse(self, odd: str) -> ConnectionError:
        """Forget what has arrived, for an answer that isn't what was asked for."""
        self.arrived.clear()
        self.odd = odd
        return ConnectionError(odd)


@dataclass(eq=False)
class Ranges:
    """What reads a model's files where they are.

    Attributes:
        about: the model, for the messages.
        commit: what is read of it.
        sizes, hashes: of its files, as `reading.Repository` has them.
        places: where each tensor lies, by name, as far as its file's header was read.
        reader: what answers `read` instead, such as one that reads ahead.
    """

    about: About
    commit: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    places: dict[str, Place] = field(default_factory=dict)
    reader: Callable[[Ranges, Place], bytearray | memoryview] | None = None
    _names: dict[str, tuple[list[int], list[str]]] = field(default_factory=dict)  # by file, in the order of bytes
    _addresses: dict[str, tuple[str, Any]] = field(default_factory=dict)
    _xet: Xet = field(default_factory=Xet)
    _lock: Lock = field(default_factory=Lock)

    def read(self, file: str, offset: int, length: int) -> bytearray | memoryview:
        """Read bytes of a file. Nobody may change a view: others are given it too.

        Args:
            file: its name.
            offset: the first byte, from the start of the file.
            length: how many bytes.

        Raises:
            HubError: if the Hub can't be reached or refuses, or keeps answering with something else.
            SourceError: if the file isn't any more what it was.
        """
        return (self.reader or Ranges.bring)(self, Place(file, offset, offset + length))

    def learn(self, file: str, tensors: Iterable[tuple[str, int, int]]) -> None:
        """Take note of where a file's tensors lie.

        Args:
            file: its name.
            tensors: of each the name, the first byte and how many, in the order of their bytes.
        """
        found = {name: Place(file, begin, begin + nbytes) for name, begin, nbytes in tensors}
        self.places |= found
        self._names[file] = [place.begin for place in found.values()], list(found)

    def tensor(self, file: str, offset: int) -> str | None:
        """Name the tensor that a byte of a file belongs to; None if it isn't known.

        Args:
            file: its name.
            offset: of the byte, from the start of the file.
        """
        begins, names = self._names.get(file, ([], []))
        i = bisect_right(begins, offset) - 1
        return names[i] if i >= 0 and offset < self.places[names[i]].end else None

    def bring(self, wanted: Place, stopped: Event | None = None) -> bytearray:
        """Read bytes of a file over the network.

        Args:
            wanted: which.
            stopped: set by who doesn't want them any more.

        Raises:
            LazyMoEError: as `read`.
        """
        transfer = _Transfer(wanted, stopped)
        try:
            ask(self.about, lambda: self._receive(transfer))
        except HubError as e:
            raise self._told(transfer, e) from None
        return transfer.arrived

    def _told(self, transfer: _Transfer, e: HubError) -> LazyMoEError:
        """Say what is true of a file that was found before, and can't be read now."""
        file, where = f"{transfer.wanted.file} of '{self.about.name}'", self.about.where
        if e.problems[0].code != "hub.unreachable":
            return e
        if transfer.odd:
            what = f"asked for a part of {file}, the Hub or a proxy on the way to it sends {transfer.odd}"
            return error("hub.ranges", where, what, "Let it be downloaded whole: --source local.")
        what = f"the connection to the Hub fails, or breaks off, whenever {file} is read"
        return error("hub.unreachable", where, what, "Check the network and run it again: it goes on from here.")

    def _receive(self, transfer: _Transfer) -> None:
        """Read what hasn't arrived yet."""
        file, start, end = transfer.wanted
        transfer.look()
        _, known = self._address(file)
        begin, began = start + len(transfer.arrived), time.monotonic()
        if by_xet := self._xet.may(known, end - begin):
            self._xet.bring(known, self.sizes[file], begin, end, transfer.take)
        if len(transfer.arrived) < end - start:
            self._ask(transfer)
        self._xet.note(by_xet, end - begin, time.monotonic() - began)

    def _ask(self, transfer: _Transfer) -> None:
        """Ask for what hasn't arrived yet at the file's address, which may have expired."""
        file = transfer.wanted.file
        address, _ = found = self._address(file)
        try:
            self._get(address, transfer)
        except hf.HfHubHTTPError as e:
            if _is_the_hub(address) or e.response is None or e.response.status_code not in EXPIRED:
                raise
            with self._lock:
                if self._addresses.get(file) == found:
                    del self._addresses[file]
            self._get(self._address(file)[0], transfer)

    def _address(self, file: str) -> tuple[str, Any]:
        """Find where a file can be read, and what the client knows of it in Xet; see to it that it is the same file."""
        with self._lock:
            if file not in self._addresses:
                url = hf_hub_url(self.about.name, file, revision=self.commit)
                found = get_hf_file_metadata(url, token=token())
                self._check(file, found.size, found.etag)
                self._addresses[file] = found.location, found.xet_file_data
            return self._addresses[file]

    def _get(self, address: str, transfer: _Transfer) -> None:
        file, offset, end = transfer.wanted
        begin = offset + len(transfer.arrived)
        headers = build_hf_headers(token=token() if _is_the_hub(address) else False)
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with _stream(address, headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:
                raise transfer.refuse("the whole")
            part, _, size = response.headers.get("Content-Range", "").partition("/")
            if part != f"bytes {begin}-{end - 1}":
                raise transfer.refuse("another part")
            tag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or ""
            self._check(file, int(size) if size.isdigit() else None, tag.removeprefix("W/").strip('"'))
            for chunk in _chunks(response):
                transfer.take(chunk)
        if len(transfer.arrived) < end - offset:
            transfer.odd = ""
            raise ConnectionError("it broke off")

    def _check(self, file: str, size: int | None, tag: str | None) -> None:
        """See to it that a file is the one that was found.

        Args:
            file: its name.
            size: in bytes; None if it wasn't said.
            tag: its hash, if a server has no tags of another kind.

        Raises:
            SourceError: if it isn't.
        """
        known = self.hashes.get(file)
        other = known and tag and HASH.fullmatch(tag) and len(tag) == len(known) and tag != known
        if other or size not in (None, self.sizes[file]):
            what = f"{file} of '{self.about.name}' isn't what the Hub had when this began"
            raise error("source.changed", self.about.where, what, "Run it again: it begins anew.")


def _is_the_hub(address: str) -> bool:
    """Tell whether an address is the Hub's own, which may see a token."""
    return urlsplit(address)[:2] == urlsplit(constants.ENDPOINT)[:2]


def _stream(address: str, headers: dict[str, str]) -> Any:
    """Ask for a file, its body to be read bit by bit, over what the client's version stands on: httpx, or requests."""
    session: Any = get_session()
    wanted = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    if callable(getattr(session, "stream", None)):
        return session.stream("GET", address, **wanted)
    return session.get(address, stream=True, **wanted)


def _chunks(response: Any) -> Iterator[bytes]:
    return response.iter_raw() if hasattr(response, "iter_raw") else response.iter_content(CHUNK)  # type: ignore[no-any-return]
