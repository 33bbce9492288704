"""The loopback Hub against the genuine huggingface_hub client, which is what makes it worth testing with."""

import http.client
import json
import os
import random
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import hub_server
import pytest
from hub_server import Hub
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = 250_000  # bytes in the large file, uploaded in parts of PART
PART = 100_000


@pytest.fixture
def hub(monkeypatch):
    with Hub(part_size=PART) as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A model: two small files, one of them in a subfolder, and a large one."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [WEIGHTS], "data_offsets": [0, WEIGHTS]}}).encode()
    weights = random.Random(0).randbytes(WEIGHTS - 1000) + bytes(1000)
    (tmp_path / "model" / "notes").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "none"}')
    (tmp_path / "model" / "notes" / "a b.txt").write_text("hello")
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    return tmp_path / "model"


def api(hub, token=False):
    return HfApi(endpoint=hub.url, token=token)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_client(hub, home, code, **env):
    """Run `code` in a process of its own, as the client reads its environment when it is imported."""
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_writer", "HF_HUB_OFFLINE": "0", **env}
    code = f"import huggingface_hub as hf\napi = hf.HfApi()\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fetch(url, timeout=10, **headers):
    """A plain GET: status, headers and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_model_info_and_trees(hub, folder):
    sha = hub.add("acme/base", folder)
    info = api(hub).model_info("acme/base", files_metadata=True)
    assert (info.sha, info.private, info.gated) == (sha, False, False)
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}
    large = (folder / "model.safetensors").stat().st_size
    assert sizes == {"config.json": (22, False), "model.safetensors": (large, True), "notes/a b.txt": (5, False)}
    assert {sibling.size for sibling in api(hub).model_info("acme/base", revision=sha).siblings} == {None}

    assert [e.path for e in api(hub).list_repo_tree("acme/base")] == ["config.json", "model.safetensors", "notes"]
    assert set(api(hub).list_repo_files("acme/base")) == set(sizes)
    assert [e.path for e in api(hub).list_repo_tree("acme/base", "notes")] == ["notes/a b.txt"]
    assert {e.path for e in api(hub).get_paths_info("acme/base", ["notes", "config.json", "no"])} == {
        "notes",
        "config.json",
    }


def test_snapshot_takes_only_what_is_asked_for(hub, folder, tmp_path):
    hub.add("acme/base", folder)
    everything = contents(folder)
    some = api(hub).snapshot_download("acme/base", allow_patterns=["*.txt", "*.json"], cache_dir=tmp_path / "some")
    assert contents(Path(some)) == {path: data for path, data in everything.items() if "safetensors" not in path}
    assert not any("safetensors" in request.path for request in hub.requests)
    assert contents(Path(api(hub).snapshot_download("acme/base", cache_dir=tmp_path / "all"))) == everything


def test_every_revision_stays_readable(hub, folder, tmp_path):
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "config.json").write_text("{}")
    first, second = hub.add("acme/base", folder), hub.add("acme/base", tmp_path / "next")
    assert first != second
    assert api(hub).model_info("acme/base").sha == second
    files = HfFileSystem(endpoint=hub.url, token=False)
    assert files.cat_file("acme/base/config.json", revision=first) == (folder / "config.json").read_bytes()
    assert files.cat_file("acme/base/config.json") == b"{}"
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info("acme/base", revision="0" * 40)


def test_ranges(hub, folder):
    hub.add("acme/base", folder)
    data = (folder / "model.safetensors").read_bytes()
    files = HfFileSystem(endpoint=hub.url, token=False)
    assert files.cat_file("acme/base/model.safetensors", start=1000, end=1010) == data[1000:1010]
    assert api(hub).get_safetensors_metadata("acme/base").files_metadata["model.safetensors"].tensors.keys() == {"w"}

    url = f"{hub.url}/acme/base/resolve/main/model.safetensors"
    for asked, expected in (("bytes=5-", data[5:]), ("bytes=-7", data[-7:]), ("bytes=0-0", data[:1])):
        status, headers, body = fetch(url, Range=asked)
        assert (status, body) == (206, expected)
        assert headers["Content-Range"].endswith(f"/{len(data)}")
    assert fetch(url, Range=f"bytes={len(data)}-")[0] == 416


PUBLISH = """
api.create_repo("writer/new", private=True, exist_ok=True)
api.upload_folder(repo_id="writer/new", folder_path={folder!r})
"""
COMMIT = """
weights = hf.CommitOperationAdd("copy.bin", {weights!r})
api.preupload_lfs_files("writer/new", [weights])
api.create_commit("writer/new", [weights, hf.CommitOperationDelete("config.json")], commit_message="Change")
"""


@pytest.mark.parametrize("way", ["lfs", "xet"])
def test_what_is_published_is_what_is_downloaded(hub, folder, tmp_path, way):
    home, env = tmp_path / "home", {"HF_HUB_DISABLE_XET": str(int(way == "lfs"))}
    publish, weights = PUBLISH.format(folder=str(folder)), folder / "model.safetensors"
    hub.fault("PUT /lfs/.*/2$", "cut")  # by LFS, the second part takes two attempts
    run_client(hub, home, publish, **env)
    parts = [request for request in hub.requests if request.method == "PUT"]
    if way == "lfs":
        last = weights.stat().st_size - 2 * PART
        assert [part.received for part in parts] == [PART, PART // 2, PART, last]
        assert [part.status for part in parts] == [200, 0, 200, 200]
    else:
        assert not parts
    assert hub.read("writer/new", "model.safetensors") == weights.read_bytes()
    assert set(hub.repos["writer/new"].commits[-1].files) == {".gitattributes", *contents(folder)}

    sent, asked = hub.large_bytes(), len(hub.requests)
    assert sent >= WEIGHTS - 1000
    run_client(hub, home, publish + COMMIT.format(weights=str(weights)), **env)
    assert hub.large_bytes() == sent  # as it has all the weights there are already
    assert sum(request.received for request in hub.requests[asked:]) < 5000
    assert hub.read("writer/new", "copy.bin") == weights.read_bytes()
    assert "config.json" not in hub.repos["writer/new"].commits[-1].files

    down, token = tmp_path / "down", f"hf.HfFileSystem().cat_file('writer/new/{weights.name}', start=9, end=12)"
    code = f"hf.snapshot_download('writer/new', local_dir={str(down)!r}, ignore_patterns='.git*')\nprint({token}.hex())"
    assert run_client(hub, tmp_path / "other", code, **env).strip() == weights.read_bytes()[9:12].hex()
    gets = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert len([get for get in gets if get.path.endswith(weights.name) and get.status == 200]) == (way == "lfs")
    assert {name: data for name, data in contents(down).items() if not name.startswith(".cache")} == {
        "model.safetensors": weights.read_bytes(),
        "copy.bin": weights.read_bytes(),
        "notes/a b.txt": b"hello",
    }


def test_who_may_read(hub, folder, tmp_path):
    hub.add("acme/secret", folder, private=True)
    hub.add("other/gated", folder, gated=True)
    hub.add("acme/gated", folder, gated=True)
    assert api(hub, "hf_reader").model_info("acme/secret").private
    assert api(hub).model_info("other/gated").gated == "manual"
    assert api(hub, "hf_reader").hf_hub_download("acme/gated", "config.json", cache_dir=tmp_path)
    for name in ("acme/secret", "acme/none"):
        with pytest.raises(RepositoryNotFoundError) as raised:
            api(hub).model_info(name)
        assert raised.value.response.status_code == 404
    with pytest.raises(GatedRepoError) as raised:
        api(hub, "hf_writer").hf_hub_download("other/gated", "config.json", cache_dir=tmp_path)
    assert raised.value.response.status_code == 403
    with pytest.raises(EntryNotFoundError):
        api(hub, "hf_writer").hf_hub_download("acme/gated", "none.json", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError) as raised:
        api(hub, "hf_unknown").model_info("other/gated")
    assert raised.value.response.status_code == 401
    assert not isinstance(raised.value, RepositoryNotFoundError)


def test_who_may_write(hub, folder):
    assert api(hub, "hf_writer").whoami()["orgs"][0]["name"] == "acme"
    assert api(hub, "hf_reader").whoami()["auth"]["accessToken"]["role"] == "read"
    url = api(hub, "hf_writer").create_repo("acme/new")
    assert str(url) == f"{hub.url}/acme/new"
    assert api(hub, "hf_writer").create_repo("acme/new", exist_ok=True) == url
    hub.add("other/base", folder)
    refused = {
        409: lambda: api(hub, "hf_writer").create_repo("acme/new"),
        403: lambda: api(hub, "hf_writer").create_repo("other/new"),
        401: lambda: api(hub).create_repo("acme/newer"),
    }
    for status, call in refused.items():
        with pytest.raises(HfHubHTTPError) as raised:
            call()
        assert raised.value.response.status_code == status
    for token, name in (("hf_reader", "acme/new"), ("hf_writer", "other/base")):
        with pytest.raises(HfHubHTTPError) as raised:
            api(hub, token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=name)
        assert raised.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as raised:
        commit = {"path_or_fileobj": b"x", "path_in_repo": "x.txt", "parent_commit": "f" * 40}
        api(hub, "hf_writer").upload_file(repo_id="acme/new", **commit)
    assert raised.value.response.status_code == 412
    assert [len(repo.commits) for repo in hub.repos.values()] == [1, 1]
    api(hub, "hf_writer").delete_repo("acme/new")
    assert not api(hub, "hf_writer").repo_exists("acme/new")


def test_a_commit_needs_its_large_files(hub):
    api(hub, "hf_writer").create_repo("acme/new")
    missing = {"path": "model.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 3}
    lines = [{"key": "header", "value": {"summary": "Add"}}, {"key": "lfsFile", "value": missing}]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    url = f"{hub.url}/api/models/acme/new/commit/main"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(url, body, {"Authorization": "Bearer hf_writer"}))
    assert len(hub.repos["acme/new"].commits) == 1


@pytest.mark.parametrize("kind", [401, 403, 404, "RepoNotFound", "GatedRepo", 409, 429, 500, 503])
def test_a_fault_comes_as_often_as_asked(hub, folder, kind):
    hub.add("acme/base", folder)
    fault = hub.fault("GET /api/models/acme/base", kind, times=2, seconds=7)
    assert fetch(f"{hub.url}/acme/base/resolve/main/config.json")[0] == 200  # another path
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as raised:
            api(hub).model_info("acme/base")
        expected = {"RepoNotFound": 404, "GatedRepo": 403}.get(kind, kind)
        assert raised.value.response.status_code == expected
        assert raised.value.response.headers.get("Retry-After") == ("7" if kind in (429, 503) else None)
        assert isinstance(raised.value, GatedRepoError) == (kind == "GatedRepo")
    assert fault.times == 0
    assert api(hub).model_info("acme/base").id == "acme/base"


def test_a_cut_connection(hub, folder):
    hub.add("acme/base", folder)
    url, data = f"{hub.url}/acme/base/resolve/main/model.safetensors", (folder / "model.safetensors").read_bytes()
    hub.fault("resolve/.*safetensors", "cut")
    assert api(hub).file_exists("acme/base", "model.safetensors")  # by HEAD, which has no body to cut
    with pytest.raises(http.client.IncompleteRead) as raised:
        fetch(url)
    assert raised.value.partial == data[: len(data) // 2]
    assert fetch(url)[2] == data


def test_a_slow_answer(hub, folder):
    hub.add("acme/base", folder)
    hub.fault("/api/models/", "slow", seconds=1)
    with pytest.raises(TimeoutError):
        fetch(f"{hub.url}/api/models/acme/base", timeout=0.2)
    assert fetch(f"{hub.url}/api/models/acme/base")[0] == 200


def test_by_hand(folder):
    command = [sys.executable, hub_server.__file__, "--repo", f"acme/base={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip().removeprefix("export HF_ENDPOINT=")
        assert url.startswith("http://127.0.0.1:")
        assert "hf_writer" in process.stdout.readline()
        assert fetch(f"{url}/acme/base/resolve/main/notes/a%20b.txt")[2] == b"hello"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
