"""A Hub on loopback: as much of the Hugging Face Hub as the genuine huggingface_hub needs to read and publish models.

    with Hub() as hub:
        hub.add("acme/base", folder)                        # a repo seeded from a folder; private=, gated=
        hub.fault("POST .*/commit/", 503, times=2)          # the first two commits fail
        HfApi(endpoint=hub.url, token="hf_writer").upload_folder(...)
        hub.requests                                        # what was asked, and how many bytes came with it

By hand: `python tests/hub_server.py --port 8080 --repo acme/base=FOLDER`, then set the HF_ENDPOINT it prints.

It serves model info, trees, whole files and ranges; it takes commits, with large files by LFS (in parts too) or by Xet.
It has no Spaces, its repositories can be read as data sets too; no branch but main, no tags, pull requests, search,
copies or pages of results, and it hands out files itself unless it is told to redirect as the Hub does. Seeded folders
are read in place, so leave them as they are. The standard library is enough, but for one thing: reading by plain HTTP a
file that came by Xet takes hf_xet. As that locks the store it writes to, only one process at a time can upload by Xet.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from time import sleep  # the real one, whatever a test makes of its own
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class User(NamedTuple):
    name: str
    role: str  # "read", "write" or "fineGrained"
    orgs: tuple[str, ...] = ()


TOKENS = {
    "hf_writer": User("writer", "write", ("acme",)),
    "hf_reader": User("reader", "read", ("acme",)),
    "hf_you": User("you", "write"),  # who README speaks to
}
ERRORS = {  # X-Error-Code -> status and message; the client has an exception class for each
    "RepoNotFound": (404, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
    "GatedRepo": (403, "Access to this repository is restricted and you are not in the authorized list"),
}
LARGE_SUFFIXES = (".bin", ".gguf", ".h5", ".npz", ".onnx", ".pt", ".pth", ".safetensors")
LARGE_SIZE = 10 * 2**20  # a file of this size is a large one whatever its name
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
DATE = "2025-01-01T00:00:00.000Z"  # of everything: equal content gives equal answers
BLOCK = 2**20
BODY = ("cut", "stall", "short", "long", "flip", "whole", "shifted")  # faults of a body


class File(NamedTuple):
    oid: str  # names the content: sha256 of a large file, git's sha1 of a small one
    size: int
    large: bool


class Commit(NamedTuple):
    oid: str
    files: dict[str, File]


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)  # oldest first


@dataclass
class Fault:
    pattern: str  # searched in "METHOD /path"
    kind: int | str  # a status, a key of ERRORS, or a word, see `Hub.fault`
    times: float
    seconds: float


class Request(NamedTuple):
    method: str
    path: str
    received: int  # bytes of the body
    status: int  # 0 when the connection was cut before an answer
    machine: str  # what asked; see `_Handler.machine`


@dataclass
class Answer:
    body: Any = None  # JSON, unless there is a part
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    part: tuple[Path, int, int] | None = None  # of a file: its path, first byte, number of bytes
    stream: Iterator[bytes] | None = None  # events, sent as they come


class Refused(Exception):
    """An error to answer with, raised wherever the reason for it is found."""

    def __init__(self, what: int | str, message: str = "", headers: dict[str, str] | None = None, **body: str):
        status, usual = ERRORS[what] if isinstance(what, str) else (what, "")
        code = {"X-Error-Code": what} if isinstance(what, str) else {}
        headers = {"X-Error-Message": message or usual, **code, **(headers or {})}
        self.answer = Answer({"error": message or usual, **body}, status, headers)


class Hub:
    """The server and all it holds, which lives as long as the `with` block."""

    def __init__(self, port: int = 0, tokens: dict[str, User] | None = None, part_size: int = 64 * 2**20):
        self.tokens = TOKENS if tokens is None else tokens
        self.part_size = part_size  # an LFS upload larger than this comes in parts of it
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.rate = math.inf  # bytes of answers a second, to each machine; see `_Handler.machine`
        self.free = Counter[str]()  # when the next may go, by machine
        self.sent = Counter[str]()  # bytes of files, by their names without folders
        self.sent_to = Counter[tuple[str, str]]()  # bytes of files, by machine and repository
        self.uses = (
            0  # how often a large file's address may be used, at another server that is shown no token; 0 if here
        )
        self.left: dict[str, int] = {}  # how often each of these may be used still
        self.content: dict[str, Path] = {}  # oid of a file -> where its bytes are
        self.cas = ""  # where it says that its Xet store is, if not where it is
        self.xet: dict[str, str] = {}  # sha256 of a large file that came by Xet -> its Xet hash
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.idle, self.busy = threading.Condition(self.lock), 0  # requests that are being answered
        self.folder = tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True)
        self.root = Path(self.folder.name)
        for name in ("small", "large", "parts", "cas", "views"):
            (self.root / name).mkdir()
        self.server = _Server(("127.0.0.1", port), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.folder.cleanup()

    def add(self, repo_id: str, folder: str | Path, private: bool = False, gated: bool = False) -> str:
        """Make `folder` the next revision of a repo, new or not, and return the commit's hash."""
        files = {}
        for path in (path for path in Path(folder).resolve().rglob("*") if path.is_file()):
            size = path.stat().st_size
            large = is_large(path.name, size)
            file = File(sha256(path) if large else git_oid(path.read_bytes()), size, large)
            files[path.relative_to(Path(folder).resolve()).as_posix()] = file
            self.content.setdefault(file.oid, path)
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            repo.private, repo.gated = private, gated
            return append(repo, files).oid

    def fault(self, pattern: str, kind: int | str, times: float = 1, seconds: float = 1) -> Fault:
        """Let the next `times` requests whose "METHOD /path" matches the regular expression `pattern` go wrong.

        `kind` is a status, a key of ERRORS, "cut" (the connection breaks halfway through the body: the request's if
        it has one, else the answer's), "slow" (the answer is `seconds` late), "stall" (it stops halfway for so long,
        and breaks off), "short" (half of it, as if that were all), "long" (a few bytes more), "flip" (one bit of it
        is another), "whole" (all of the file in place of a range), "shifted" (the range is said to be another one) or
        "retag" (the file is said to be another one). With 429 and 503, `seconds` is the Retry-After. The `times` of the
        fault returned count down to 0.
        """
        self.faults.append(Fault(pattern, kind, times, seconds))
        return self.faults[-1]

    def read(self, repo_id: str, path: str) -> bytes:
        """The bytes of a file on main, whichever way they came."""
        return self.locate(self.repos[repo_id].commits[-1].files[path]).read_bytes()

    def large_bytes(self) -> int:
        """The size of all large files uploaded so far; those that come by Xet don't show in `requests`."""
        stored = [*(self.root / "large").iterdir(), *(self.root / "cas/xet/xorbs/xorbs").glob("*")]
        return sum(path.stat().st_size for path in stored if path.suffix != ".tagset")

    def take_fault(self, asked: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                bodiless = fault.kind in BODY and asked.startswith("HEAD ")
                if fault.times > 0 and not bodiless and re.search(fault.pattern, asked):
                    fault.times -= 1
                    return fault
        return None

    def sent_of(self, name: str) -> int:
        """How many bytes were sent of the files of this name, when all that was asked for is answered."""
        with self.idle:
            self.idle.wait_for(lambda: not self.busy)
            return self.sent[name]

    def pace(self, machine: str, nbytes: int) -> None:
        """Wait until so many bytes more may be sent to a machine."""
        with self.lock:
            now = time.monotonic()
            self.free[machine] = max(self.free[machine], now) + nbytes / self.rate
            wait = self.free[machine] - now
        if wait > 0.001:
            sleep(wait)

    def keep(self, data: bytes) -> File:
        """Store a small file."""
        file = File(git_oid(data), len(data), large=False)
        self.content[file.oid] = self.root / "small" / file.oid
        self.content[file.oid].write_bytes(data)
        return file

    def has(self, oid: str) -> bool:
        """Whether the bytes of a large file have arrived, by LFS or by Xet."""
        if oid not in self.content and oid not in self.xet:
            self.xet.update(xet_hashes(self.root / "cas"))
        return oid in self.content or oid in self.xet

    def locate(self, file: File) -> Path:
        """Where the bytes of a file are, after putting them together if they are Xet chunks."""
        with self.lock:
            if file.oid not in self.content:
                self.content[file.oid] = self.root / "views" / file.oid
                self.unpack(self.xet[file.oid], self.content[file.oid])
            return self.content[file.oid]

    def unpack(self, xet_hash: str, path: Path, store: str = "cas") -> None:
        """Put a file together from its Xet chunks."""
        import hf_xet

        access = {"token": "-", "token_expiry_unix_secs": int(time.time()) + 3600}
        endpoint = f"local://{self.view(store)}"
        with hf_xet.XetSession().new_file_download_group(endpoint=endpoint, **access) as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash), str(path))

    def view(self, store: str = "cas") -> str:
        """A Xet store for one more reader: links and a copy of the database, which hf_xet locks for good."""
        view = tempfile.mkdtemp(dir=self.root / "views")

        def share(source: str, target: str) -> None:
            (shutil.copy if source.endswith(".redb") else os.link)(source, target)

        shutil.copytree(self.root / store, view, copy_function=share, dirs_exist_ok=True)
        return view


def append(repo: Repo, files: dict[str, File]) -> Commit:
    """A new commit; its hash depends on the parents and the files, not on the clock."""
    parent = repo.commits[-1].oid if repo.commits else ""
    repo.commits.append(Commit(hashlib.sha1(repr((parent, sorted(files.items()))).encode()).hexdigest(), files))
    return repo.commits[-1]


def is_large(name: str, size: int) -> bool:
    return size >= LARGE_SIZE or (size > 0 and name.endswith(LARGE_SUFFIXES))


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def copy(source: BinaryIO, target: BinaryIO, size: int, pace: Callable[[int], None] = lambda nbytes: None) -> int:
    """Copy up to `size` bytes and return how many there were."""
    left = size
    while left and (block := source.read(min(left, BLOCK))):
        pace(len(block))
        target.write(block)
        left -= len(block)
    return size - left


def xet_hashes(store: Path) -> Iterator[tuple[str, str]]:
    """(sha256, Xet hash) of the files in a local Xet store, from its shards: records of 48 bytes after a header."""

    def text(raw: bytes) -> str:
        return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))

    for shard in store.rglob("*.mdb"):
        data, at = shard.read_bytes(), 48
        while (name := data[at : at + 32]) != b"\xff" * 32:
            flags, segments = struct.unpack_from("<II", data, at + 32)
            at += 48 * (1 + segments + segments * (flags >> 31))  # bit 31: every segment has a verification record
            if flags >> 30 & 1:  # bit 30: a record with the sha256 follows
                yield text(data[at : at + 32]), text(name)
                at += 48


@dataclass
class Call:
    """A request, as the functions below see it."""

    hub: Hub
    user: User | None
    headers: Any
    query: dict[str, list[str]]
    body: BinaryIO

    def owns(self, namespace: str) -> bool:
        return self.user is not None and namespace in (self.user.name, *self.user.orgs)

    def check_write(self, namespace: str) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user.role != "write" or not self.owns(namespace):
            raise Refused(403, f"You don't have the rights to write to {namespace}")

    def find(self, repo_id: str, revision: str = "main", to: str = "see") -> tuple[Repo, Commit]:
        """A repo and one of its commits, if the caller may see it, "read" its files or "write" new ones."""
        repo, namespace = self.hub.repos.get(repo_id), repo_id.split("/")[0]
        if repo is None or (repo.private and not self.owns(namespace)):
            raise Refused("RepoNotFound")
        if to == "read" and repo.gated and not self.owns(namespace):
            raise Refused("GatedRepo")
        if to == "write":
            self.check_write(namespace)
        if revision == "main":
            return repo, repo.commits[-1]
        for commit in repo.commits:
            if commit.oid == revision and to != "write":
                return repo, commit
        raise Refused("RevisionNotFound")


Responder = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Responder]] = []
ID, REV, SHA256 = "([^/]+/[^/]+)", "([^/]+)", "([0-9a-f]{64})"
READ = "/api/(?:models|datasets)"  # a repository can be read as either


def route(method: str, path: str) -> Callable[[Responder], Responder]:
    """Let a function answer the requests whose path is like `path`; the groups are its arguments."""

    def register(function: Responder) -> Responder:
        ROUTES.append((method, re.compile(path), function))
        return function

    return register


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    if call.user is None:
        raise Refused(401, "Invalid username or password.")
    name, role, orgs = call.user
    access = {"type": "access_token", "accessToken": {"displayName": role, "role": role}}
    if role == "fineGrained":  # one that may write to the first of its owner's organizations only
        scope = {"entity": {"type": "org", "name": orgs[0]}, "permissions": ["repo.content.read", "repo.write"]}
        access["accessToken"]["fineGrained"] = {"scoped": [scope]}
    organizations = [{"type": "org", "name": org, "fullname": org, "roleInOrg": role} for org in orgs]
    return Answer({"type": "user", "id": name, "name": name, "fullname": name, "orgs": organizations, "auth": access})


def full_name(call: Call, asked: dict[str, Any]) -> str:
    return f"{asked.get('organization') or (call.user.name if call.user else '')}/{asked['name']}"


@route("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    hub, asked = call.hub, json.load(call.body)
    repo_id, private = full_name(call, asked), asked.get("private") or asked.get("visibility") == "private"
    call.check_write(repo_id.split("/")[0])
    with hub.lock:
        if repo_id in hub.repos:
            raise Refused(409, "You already created this model repo", url=f"{hub.url}/{repo_id}")
        repo = Repo(bool(private))
        append(repo, {".gitattributes": hub.keep(GITATTRIBUTES.encode())})
        hub.repos[repo_id] = repo
    return Answer({"url": f"{hub.url}/{repo_id}", "name": repo_id})


@route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Answer:
    repo_id = full_name(call, json.load(call.body))
    call.find(repo_id, to="write")
    del call.hub.repos[repo_id]
    return Answer({})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    return Answer({"errors": [], "warnings": []})


def describe(hub: Hub, file: File) -> dict[str, Any]:
    """A file as model info and trees show it; git's own object for a large file is the LFS pointer to it."""
    if not file.large:
        return {"size": file.size, "oid": file.oid, "blobId": file.oid}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.oid}\nsize {file.size}\n".encode()
    lfs = {"oid": file.oid, "sha256": file.oid, "size": file.size, "pointerSize": len(pointer)}
    xet = {"xetHash": hub.xet[file.oid]} if file.oid in hub.xet else {}
    return {"size": file.size, "oid": git_oid(pointer), "blobId": git_oid(pointer), "lfs": lfs, **xet}


@route("GET", f"{READ}/{ID}(?:/revision/{REV})?")
def model_info(call: Call, repo_id: str, revision: str | None) -> Answer:
    repo, commit = call.find(repo_id, revision or "main")
    names = {"id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": commit.oid}
    flags = {"private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False, "xetEnabled": True}
    siblings = [
        {"rfilename": path, **(describe(call.hub, file) if "blobs" in call.query else {})}
        for path, file in sorted(commit.files.items())
    ]
    return Answer({**names, **flags, "lastModified": DATE, "createdAt": DATE, "tags": [], "siblings": siblings})


def entries(call: Call, repo_id: str, revision: str) -> dict[str, dict[str, Any]]:
    """All files and folders of a commit, by path."""
    files = call.find(repo_id, revision)[1].files
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    shown = {path: {"type": "directory", "path": path, "oid": git_oid(path.encode())} for path in folders}
    return shown | {path: {"type": "file", "path": path, **describe(call.hub, file)} for path, file in files.items()}


@route("GET", f"{READ}/{ID}/tree/{REV}(?:/(.+))?")
def tree(call: Call, repo_id: str, revision: str, folder: str | None) -> Answer:
    shown, prefix = entries(call, repo_id, revision), f"{folder}/" if folder else ""
    inside = [path for path in sorted(shown) if path.startswith(prefix)]
    if folder and not inside:
        raise Refused("EntryNotFound")
    recursive = call.query.get("recursive", [""])[0].lower() in ("true", "1")
    return Answer([shown[path] for path in inside if recursive or "/" not in path.removeprefix(prefix)])


@route("POST", f"{READ}/{ID}/paths-info/{REV}")
def paths_info(call: Call, repo_id: str, revision: str) -> Answer:
    shown, asked = entries(call, repo_id, revision), parse_qs(call.body.read().decode()).get("paths", [])
    return Answer([shown[path.rstrip("/")] for path in asked if path.rstrip("/") in shown])


@route("GET", f"(?:/datasets)?/{ID}/resolve/{REV}/(.+)")
def resolve(call: Call, repo_id: str, revision: str, path: str) -> Answer:
    hub, (_, commit) = call.hub, call.find(repo_id, revision, to="read")
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        raise Refused("EntryNotFound", headers=headers)
    file = commit.files[path]
    headers |= {"ETag": f'"{file.oid}"', "X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
    if file.oid in hub.xet:
        token = f"<{hub.url}/api/models/{repo_id}/xet-read-token/{commit.oid}>"
        headers |= {"X-Xet-Hash": hub.xet[file.oid], "Link": f'{token}; rel="xet-auth"'}
    if hub.uses and file.large:
        with hub.lock:
            signature = str(len(hub.left))
            hub.left[signature] = hub.uses
        port = hub.server.server_port
        headers["Location"] = f"http://localhost:{port}/signed/{file.oid}/{path}?signature={signature}"
        return Answer(None, 302, headers)
    return ranged(call, file, headers)


@route("GET", f"/signed/{SHA256}/(.+)")
def signed(call: Call, oid: str, path: str) -> Answer:
    """A file by an address that is good for a while, at what counts as another server."""
    hub, [signature] = call.hub, call.query["signature"]
    with hub.lock:
        hub.left[signature] -= 1
        if hub.left[signature] < 0 or call.headers.get("Authorization"):
            raise Refused(403, "Request has expired")
    file = next(c.files[path] for r in hub.repos.values() for c in r.commits if c.files.get(path, ("",))[0] == oid)
    return ranged(call, file, {"ETag": '"another-kind-of-tag"'})


def ranged(call: Call, file: File, headers: dict[str, str]) -> Answer:
    """The part of a file that is asked for, or all of it."""
    start, stop, status = 0, file.size, 200
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", call.headers.get("Range", "")):
        first, last, tail = match.groups()
        start = int(first) if first else max(file.size - int(tail), 0)
        stop = min(int(last) + 1, file.size) if last else file.size
        if start >= stop:
            raise Refused(416, "Range not satisfiable", {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"], status = f"bytes {start}-{stop - 1}/{file.size}", 206
    return Answer(None, status, headers, (call.hub.locate(file), start, stop - start))


@route("POST", f"/api/models/{ID}/preupload/{REV}")
def preupload(call: Call, repo_id: str, revision: str) -> Answer:
    files, modes = call.find(repo_id, revision, to="write")[1].files, []
    for path, size in ((file["path"], file["size"]) for file in json.load(call.body)["files"]):
        mode = {"path": path, "uploadMode": "lfs" if is_large(path, size) else "regular", "shouldIgnore": False}
        modes.append({**mode, "oid": files[path].oid if path in files else None})
    return Answer({"files": modes})


@route("POST", f"/{ID}\\.git/info/lfs/objects/batch")
def lfs_batch(call: Call, repo_id: str) -> Answer:
    call.find(repo_id, to="write")
    asked, part_size, objects = json.load(call.body), call.hub.part_size, []
    for oid, size in ((item["oid"], item["size"]) for item in asked["objects"]):
        objects.append({"oid": oid, "size": size})
        if not call.hub.has(oid):  # without actions, there is nothing to send
            href = f"{call.hub.url}/lfs/{oid}"
            upload: dict[str, Any] = {"href": f"{href}/1"}
            if size > part_size:
                parts = {str(n): f"{href}/{n}" for n in range(1, -(-size // part_size) + 1)}
                upload = {"href": href, "header": {"chunk_size": str(part_size), **parts}}
            objects[-1]["actions"] = {"upload": upload, "verify": {"href": href}}
    return Answer({"transfer": "xet" if "xet" in asked.get("transfers", []) else "basic", "objects": objects})


@route("PUT", f"/lfs/{SHA256}/([0-9]+)")
def lfs_part(call: Call, oid: str, number: str) -> Answer:
    with (call.hub.root / "parts" / f"{oid}.{number}").open("wb") as part:
        shutil.copyfileobj(call.body, part)
    return Answer({}, headers={"ETag": f'"{oid}-{number}"'})


@route("POST", f"/lfs/{SHA256}")
def lfs_done(call: Call, oid: str) -> Answer:
    """Join the parts of an upload; asked after the last of several, and to verify any upload."""
    hub, whole = call.hub, call.hub.root / "large" / oid
    with hub.lock:
        if oid not in hub.content:
            with whole.open("wb") as target:
                for part in sorted((hub.root / "parts").glob(f"{oid}.*"), key=lambda part: int(part.suffix[1:])):
                    target.write(part.read_bytes())
                    part.unlink()
            if sha256(whole) != oid:
                whole.unlink()
                raise Refused(400, "The upload is not what its sha256 says")
            hub.content[oid] = whole
    return Answer({})


@route("GET", f"/api/models/{ID}/xet-(read|write)-token/{REV}")
def xet_token(call: Call, repo_id: str, right: str, revision: str) -> Answer:
    """Access to the Xet store, which is no server here but a folder that hf_xet itself reads and writes."""
    call.find(repo_id, revision, to=right)
    url = call.hub.cas or f"local://{call.hub.view() if right == 'read' else call.hub.root / 'cas'}"
    expires = int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "-", "X-Xet-Token-Expiration": str(expires)}
    return Answer({"casUrl": url, "accessToken": "-", "exp": expires}, headers=headers)


@route("POST", f"/api/models/{ID}/commit/{REV}")
def commit(call: Call, repo_id: str, revision: str) -> Answer:
    hub = call.hub
    with hub.lock:
        repo, head = call.find(repo_id, revision, to="write")
        files = dict(head.files)
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, call.body)):
            if key == "header":
                if not head.oid.startswith(value.get("parentCommit") or ""):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = hub.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not hub.has(value["oid"]):
                    raise Refused(400, f"{value['path']} points to a large file that was not uploaded")
                files[value["path"]] = File(value["oid"], value["size"], large=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused("EntryNotFound")
            elif key == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
            else:
                raise Refused(400, f"Unknown operation {key}")
        oid = append(repo, files).oid
    return Answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo_id}/commit/{oid}"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the threads of a client connect all at once
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes, headers and body
    server: _Server

    def serve(self) -> None:
        hub = self.server.hub
        with hub.idle:
            hub.busy += 1
        try:
            self.serve_one()
        finally:
            with hub.idle:
                hub.busy -= 1
                hub.idle.notify_all()

    def serve_one(self) -> None:
        counted, counted_to = self.server.hub.sent, self.server.hub.sent_to  # a late answer is none of the next test's
        hub, url, length = self.server.hub, urlsplit(self.path), int(self.headers.get("Content-Length") or 0)
        fault = hub.take_fault(f"{self.command} {unquote(url.path)}")
        kind = fault.kind if fault else None
        if kind == "slow":
            sleep(fault.seconds)
        with tempfile.SpooledTemporaryFile(BLOCK) as body:
            received = copy(self.rfile, body, length // 2 if kind == "cut" else length)
            body.seek(0)
            if received < length:  # cut short, by us or by the client
                hub.requests.append(Request(self.command, self.path, received, 0, self.machine))
                self.close_connection = True
                return
            try:
                if kind not in (None, "slow", "retag", *BODY):
                    retry = {"Retry-After": f"{fault.seconds:.0f}"} if kind in (429, 503) else {}
                    raise Refused(kind, "Broken on purpose", retry)
                answer = self.answer(url.path, parse_qs(url.query), body)
            except Refused as refused:
                answer = refused.answer
            except Exception:  # a mistake in here: the client gets a 500 and the test's output the reason
                traceback.print_exc()
                answer = Answer({"error": "Internal error"}, 500)
        hub.requests.append(Request(self.command, self.path, received, answer.status, self.machine))
        with contextlib.suppress(ConnectionError):  # the client may hang up
            sent = self.send(answer, fault if kind in (*BODY, "retag") else None)
            with hub.lock:  # requests are answered side by side
                counted[PurePosixPath(unquote(url.path)).name] += sent
                counted_to[self.machine, "/".join(url.path.split("/")[1:3])] += sent

    @property
    def machine(self) -> str:
        """What asks, if it says so, as it does with HF_HUB_USER_AGENT_ORIGIN: for one of several on this machine."""
        found = re.search(r"origin/([\w-]+)", self.headers.get("User-Agent", ""))
        return found[1] if found else ""

    def pace(self, nbytes: int) -> None:
        self.server.hub.pace(self.machine, nbytes)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self, path: str, query: dict[str, list[str]], body: BinaryIO) -> Answer:
        hub, token = self.server.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        for method, pattern, function in ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                groups = (group and unquote(group) for group in match.groups())
                return function(Call(hub, hub.tokens.get(token), self.headers, query, body), *groups)
        raise Refused(404, f"This Hub has no {self.command} {path}")

    def send(self, answer: Answer, fault: Fault | None) -> int:
        """Send an answer, with whatever is to go wrong in it; give how many bytes of a file its body had."""
        data, kind = json.dumps(answer.body).encode(), fault.kind if fault else None
        path, start, size = answer.part or (None, 0, len(data))
        if kind == "whole" and path:
            start, size, answer.status = 0, path.stat().st_size, 200
            del answer.headers["Content-Range"]
        if kind == "shifted":
            answer.headers["Content-Range"] = f"bytes 0-{size - 1}/{size + 1}"
        if kind == "retag":
            answer.headers |= dict.fromkeys(("ETag", "X-Linked-Etag"), f'"{"0" * 64}"')
        if answer.stream:
            return self.send_stream(answer.stream, cut=kind == "cut")
        size, more = (size // 2 if kind == "short" else size), (b"more" if kind == "long" else b"")
        self.send_response(answer.status)
        # one answer to a connection, so that none outlives its Hub
        form = "application/octet-stream" if path else "application/json"
        length = str(size + len(more))
        for name, value in {
            "Content-Type": form,
            "Content-Length": length,
            "Connection": "close",
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        with path.open("rb") if path else io.BytesIO(data) as stream:
            stream.seek(start)
            if kind == "flip":
                first = stream.read(1)
                self.wfile.write(bytes([first[0] ^ 1]))
                return 1 + copy(stream, self.wfile, size - 1)
            sent = copy(stream, self.wfile, size // 2 if kind in ("cut", "stall") else size, self.pace)
        if fault and kind == "stall":
            self.wfile.flush()
            sleep(fault.seconds)
        self.wfile.write(more)
        return sent if path else 0

    def send_stream(self, stream: Iterator[bytes], cut: bool) -> int:
        """Send events in chunks; if it is to be cut, without the end that says that it is whole."""
        self.send_response(200)
        for name, value in (("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.closing(stream):
            for i, event in enumerate(stream):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                if cut and i == 2:
                    return 0
        self.wfile.write(b"0\r\n\r\n")
        return 0

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `requests` has it all."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub on loopback")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--repo", action="append", default=[], metavar="ORG/NAME=FOLDER")
    parser.add_argument("--rate", type=float, default=math.inf, metavar="MB", help="a second, to each machine")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    with contextlib.suppress(KeyboardInterrupt), Hub(args.port) as hub:
        hub.rate = args.rate * 1e6
        for repo_id, folder in (item.split("=", 1) for item in args.repo):
            hub.add(repo_id, folder)
        print(f"export HF_ENDPOINT={hub.url}")
        for token, user in hub.tokens.items():
            names = " and ".join((user.name, *user.orgs))
            print(f"export HF_TOKEN={token}  # a {user.role} token for {names}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
