"""Publishing with the genuine client to a Hub on loopback, with everything going wrong that can."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from crossing import crossed
from hub_server import Hub, User

from lazymoe import LazyMoEError, merge
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.hub.accounts import find_token
from lazymoe.publishing import publish

REPO = "writer/my-moe"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture(scope="module")
def mixture(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("publish") / "my-moe"
    merge(demo_recipe(demo_models, domains(), "random"), out, shard_size=2_200_000)
    assert sorted(p.name for p in out.glob("*.safetensors")) == SHARDS
    return out


def files(hub: Hub) -> dict[str, bytes]:
    return {name: hub.read(REPO, name) for name in hub.repos[REPO].commits[-1].files}


def check_whole_or_invisible(hub: Hub, mixture: Path) -> bool:
    """Whether the repository holds the model; never a part of it that could be loaded."""
    if REPO not in hub.repos:
        return False
    for commit in hub.repos[REPO].commits:
        names = set(commit.files)
        assert not names & {"config.json", *SHARDS} or names >= {"config.json", "README.md", *SHARDS}
    return "config.json" in hub.repos[REPO].commits[-1].files


def test_publish_sends_everything_and_then_only_what_changed(empty_hub: Hub, mixture: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    done = publish(mixture, REPO, progress=lambda *step: seen.append(step))
    there = files(empty_hub)
    for path in mixture.iterdir():
        if path.name != "recipe.yaml":  # where the models lay concerns nobody
            assert there[path.name] == path.read_bytes()
    assert there["README.md"].startswith(b"---\n") and b"my-moe" in there["README.md"]
    total = sum((mixture / shard).stat().st_size for shard in SHARDS)
    assert (done.url, done.sent) == (f"{empty_hub.url}/{REPO}", total)
    assert seen[0] == ("upload", 0, total) and seen[-1] == ("upload", total, total)
    assert len(empty_hub.repos[REPO].commits) == 2  # the Hub's own first one, and ours

    stored, asked = empty_hub.large_bytes(), len(empty_hub.requests)
    assert publish(mixture, REPO).sent == 0
    assert len(empty_hub.repos[REPO].commits) == 2
    assert empty_hub.large_bytes() == stored
    assert not [r for r in empty_hub.requests[asked:] if r.method == "PUT" or r.path.endswith("batch")]

    publish(mixture, REPO, license="mit")
    assert len(empty_hub.repos[REPO].commits) == 3 and b"license: mit" in files(empty_hub)["README.md"]
    assert empty_hub.large_bytes() == stored


def test_publishing_another_mixture_there_leaves_no_old_shard(
    empty_hub: Hub, mixture: Path, demo_models: Path, tmp_path: Path
) -> None:
    publish(mixture, REPO)
    merge(demo_recipe(demo_models, domains(), "random"), tmp_path / "my-moe")
    publish(tmp_path / "my-moe", REPO)
    assert [n for n in files(empty_hub) if n.endswith(".safetensors")] == ["model-00001-of-00001.safetensors"]


REQUESTS = {
    "whoami": "GET /api/whoami-v2",
    "info": f"GET /api/models/{REPO}",
    "create": "POST /api/repos/create",
    "preupload": "POST .*/preupload/",
    "commit": "POST .*/commit/",
}


@pytest.mark.parametrize(("request_name", "kind"), crossed(REQUESTS, [429, 500, 503, "cut", "slow"]))
def test_a_passing_fault_is_retried(empty_hub: Hub, mixture: Path, request_name: str, kind: int | str) -> None:
    fault = empty_hub.fault(REQUESTS[request_name], kind, times=1 if kind == "slow" else 2, seconds=0)
    publish(mixture, REPO)
    assert fault.times == 0
    assert check_whole_or_invisible(empty_hub, mixture)


@pytest.mark.parametrize(
    ("request_name", "kind", "words"),
    crossed(
        ["whoami", "create", "info", "commit"],
        [
            (401, "token: the Hub doesn't know it"),
            (403, "doesn't allow this"),
            (409, "somebody else is changing"),
            (429, "too many requests"),
            (500, "status 500"),
            (503, "status 503"),
            ("cut", "can't be reached"),
            ("GatedRepo", "doesn't allow this"),
            ("RepoNotFound", "the repository vanished"),
        ],
    ),
)
def test_a_lasting_fault_stops_with_one_line_and_a_rerun_completes(
    empty_hub: Hub, mixture: Path, request_name: str, kind: int | str, words: str
) -> None:
    if (request_name, kind) == ("create", 409):
        return  # that is the Hub's way to say that the repository is there already
    if (request_name, kind) == ("info", "RepoNotFound"):
        return  # and that it isn't
    empty_hub.fault(REQUESTS[request_name], kind, times=math.inf, seconds=0)
    with pytest.raises(LazyMoEError, match=words) as caught:
        publish(mixture, REPO)
    assert len(caught.value.problems) == 1 and "\n" not in str(caught.value)
    assert "hf_writer" not in str(caught.value)
    assert not check_whole_or_invisible(empty_hub, mixture)
    empty_hub.faults.clear()
    publish(mixture, REPO)
    assert check_whole_or_invisible(empty_hub, mixture)


def test_an_upload_cut_in_the_middle_goes_on(empty_hub: Hub, mixture: Path) -> None:
    """Parts of a large file that break off, for as long as the client itself tries."""
    empty_hub.fault("PUT /lfs/", "cut", times=2)
    publish(mixture, REPO)
    assert check_whole_or_invisible(empty_hub, mixture)


def test_shards_that_were_sent_are_not_sent_again(empty_hub: Hub, mixture: Path) -> None:
    empty_hub.fault(REQUESTS["commit"], 500, times=math.inf)
    with pytest.raises(LazyMoEError):
        publish(mixture, REPO)
    stored = empty_hub.large_bytes()
    assert stored >= sum((mixture / shard).stat().st_size for shard in SHARDS) * 0.9  # Xet compresses
    empty_hub.faults.clear()
    asked = len(empty_hub.requests)
    publish(mixture, REPO)
    assert empty_hub.large_bytes() == stored
    assert sum(r.received for r in empty_hub.requests[asked:]) < 1_000_000


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_nobody", REPO, "token: the Hub doesn't know it"),
        ("hf_reader", "reader/my-moe", "token: it may only read"),
        ("hf_writer", "stranger/my-moe", "'stranger' is not you (writer), nor an organization where you may write"),
        ("hf_writer", "my-moe", "'my-moe' isn't a Hub id. Use a name such as 'writer/my-moe'"),
        ("hf_writer", "writer/my moe", "isn't a name the Hub takes"),
        ("hf_fine", REPO, "token: it may not write to 'writer'"),
    ],
)
def test_what_may_not_be_is_said_before_a_byte_is_sent(
    empty_hub: Hub, mixture: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, words: str
) -> None:
    monkeypatch.setitem(empty_hub.tokens, "hf_fine", User("writer", "fineGrained", ("acme",)))
    asked = len(empty_hub.requests)
    with pytest.raises(LazyMoEError, match=re.escape(words)) as caught:
        publish(mixture, repo, token=token)
    assert token not in str(caught.value)
    assert not [r for r in empty_hub.requests[asked:] if r.method != "GET"]


def test_a_token_is_asked_for(empty_hub: Hub, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert find_token() is None
    with pytest.raises(LazyMoEError, match="token: there is none"):
        publish(mixture, REPO)


def test_a_repository_of_something_else_is_left_alone(empty_hub: Hub, mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    empty_hub.add(REPO, tmp_path)
    with pytest.raises(LazyMoEError, match="something that LazyMoE didn't make"):
        publish(mixture, REPO)
    assert files(empty_hub) == {"config.json": b"{}"}


def test_private_means_private(empty_hub: Hub, mixture: Path) -> None:
    publish(mixture, REPO, private=True)
    assert empty_hub.repos[REPO].private
    publish(mixture, REPO)
    assert empty_hub.repos[REPO].private
    empty_hub.repos[REPO].private = False
    with pytest.raises(LazyMoEError, match="public already"):
        publish(mixture, REPO, private=True)


def test_only_a_finished_mixture_is_published(empty_hub: Hub, mixture: Path, tmp_path: Path) -> None:
    half = shutil.copytree(mixture, tmp_path / "half")
    (half / SHARDS[1]).unlink()
    with pytest.raises(LazyMoEError, match=r"lacks .*00002-of-00002"):
        publish(half, REPO)
    assert REPO not in empty_hub.repos
    index = json.loads((mixture / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(SHARDS)
