"""GGUF files published with the genuine client to a Hub on loopback: their card, both repositories' links, faults."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hub_server import Hub
from small_models import recipe

from lazymoe import LazyMoEError, card, merge, publish, report_gguf, to_gguf
from lazymoe.cli import main

WHOLE, REPO = "writer/my-moe", "writer/my-moe-GGUF"
PROMPTS = ("The sea was calm, and the wind had died down.", "def add(a, b):\n    return a + b")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> Path:
    """The folder of GGUF files of a mixture that lies beside it."""
    folder = tmp_path_factory.mktemp("published")
    given = recipe(*(demo_models / name for name in ("base", "python", "english")))
    asked = [e.model_copy(update={"positive_prompts": [p]}) for e, p in zip(given.experts, PROMPTS, strict=True)]
    merge(given.with_experts(asked), folder / "my-moe", device="cpu")
    to_gguf(folder / "my-moe", "Q8_0,Q4_K_M", device="cpu")
    report_gguf(folder / "my-moe-GGUF", device="cpu")
    return folder / "my-moe-GGUF"


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "my-moe-GGUF")


def there(hub: Hub, repo: str = REPO) -> dict[str, bytes]:
    return {name: hub.read(repo, name) for name in hub.repos[repo].commits[-1].files}


def front(text: bytes) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.decode().split("---\n")[1])
    return found


def test_all_files_and_a_card_that_says_how_to_run_them(empty_hub: Hub, files: Path) -> None:
    done = publish(files, REPO)
    found = there(empty_hub)
    weights = {path.name: path for path in files.glob("*.gguf")}
    assert set(found) - {".gitattributes"} == {*weights, "README.md", "gguf.json", "quality.json", "recipe.yaml"}
    assert all(found[name] == path.read_bytes() for name, path in weights.items())
    assert done.sent == sum(path.stat().st_size for path in weights.values())
    assert str(files.parent) not in str(found) and b"source_model: python" in found["recipe.yaml"]
    text = found["README.md"].decode()
    measured = json.loads(found["quality.json"])
    for kind in ("Q8_0", "Q4_K_M"):
        loss = sum(measured["types"][kind]["losses"]) / 2
        assert re.search(
            rf"^\| {kind} \| .*my-moe-.*[MG]B \|.* {loss:.3f} \| [+-][0-9.]+ \| [0-9.]+ % \|$", text, re.M
        ), text
    assert f"llama-cli -hf {REPO}:Q4_K_M\nollama run hf.co/{REPO}:Q4_K_M\n" in text
    assert front(found["README.md"])["tags"] == ["moe", "frankenmoe", "gguf", "mixtral", "lazymoe"]
    assert (publish(files, REPO).sent, len(empty_hub.repos[REPO].commits)) == (0, 2)


def test_both_repositories_link_to_each_other(empty_hub: Hub, files: Path, made: Path) -> None:
    whole = made.with_name("my-moe")
    publish(files, REPO)
    assert "base_model" not in front(there(empty_hub)["README.md"])
    publish(whole, WHOLE)
    assert f"https://huggingface.co/{REPO}" in there(empty_hub, WHOLE)["README.md"].decode()
    publish(files, REPO)
    found = front(there(empty_hub)["README.md"])
    assert (found["base_model"], found["base_model_relation"]) == (WHOLE, "quantized")
    (files / "gguf.json").write_text((files / "gguf.json").read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    publish(files, REPO)  # of another mixture
    assert "base_model" not in front(there(empty_hub)["README.md"])


def test_types_of_the_same_mixture_stay_and_others_go(empty_hub: Hub, files: Path) -> None:
    publish(files, REPO)
    (files / "my-moe-Q8_0.gguf").unlink()
    publish(files, REPO)
    text = there(empty_hub)["README.md"].decode()
    assert {"my-moe-Q8_0.gguf", "my-moe-Q4_K_M.gguf"} <= there(empty_hub).keys()
    assert text.index("| Q8_0 |") < text.index("| Q4_K_M |")
    (files / "gguf.json").write_text((files / "gguf.json").read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    publish(files, REPO)
    assert "my-moe-Q8_0.gguf" not in there(empty_hub)
    assert "Q8_0" not in there(empty_hub)["README.md"].decode().partition("## Usage")[0]


@pytest.mark.parametrize("request_name", ["GET /api/whoami-v2", "POST /api/repos/create", "POST .*/commit/"])
def test_a_fault_leaves_nothing_to_be_seen_and_a_rerun_sends_nothing_twice(
    empty_hub: Hub, files: Path, request_name: str
) -> None:
    empty_hub.fault(request_name, 500, times=math.inf)
    with pytest.raises(LazyMoEError, match="status 500") as e:
        publish(files, REPO)
    assert len(str(e.value).splitlines()) == 1
    assert REPO not in empty_hub.repos or not any(name.endswith(".gguf") for name in there(empty_hub))
    empty_hub.faults.clear()
    empty_hub.fault(request_name, 429, times=2)
    stored = empty_hub.large_bytes()
    publish(files, REPO)
    assert "my-moe-Q4_K_M.gguf" in there(empty_hub)
    if "commit" in request_name:
        assert empty_hub.large_bytes() == stored


def spoiled(files: Path) -> None:
    data = (files / "my-moe-Q8_0.gguf").read_bytes()
    (files / "my-moe-Q8_0.gguf").write_bytes(b"NONE" + data[4:])


def changed(files: Path) -> None:
    data = (files / "my-moe-Q8_0.gguf").read_bytes()
    (files / "my-moe-Q8_0.gguf").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def linked(files: Path) -> None:
    (files / "my-moe-Q8_0.gguf").rename(files.parent / "elsewhere")
    (files / "my-moe-Q8_0.gguf").symlink_to(files.parent / "elsewhere")


def secret(files: Path) -> None:
    text = (files / "recipe.yaml").read_text()
    (files / "recipe.yaml").write_text(text.replace("The sea", "hf_" + "A" * 34))


def empty(files: Path) -> None:
    for path in files.glob("my-moe-Q*.gguf"):
        path.write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(spoiled, "isn't a whole GGUF file"), (changed, "changed since it was made"), (linked, "is a link"),
     (secret, "looks like a Hugging Face token"), (empty, "there are no whole GGUF files")],
)  # fmt: skip
def test_what_must_not_go_there_does_not(empty_hub: Hub, files: Path, spoil: object, told: str) -> None:
    spoil(files)  # type: ignore[operator]
    with pytest.raises(LazyMoEError, match=told) as e:
        publish(files, REPO)
    assert len(str(e.value).splitlines()) == 1
    assert REPO not in empty_hub.repos


def test_a_repository_of_the_other_kind_is_left_alone(empty_hub: Hub, files: Path, made: Path) -> None:
    publish(files, REPO)
    publish(made.with_name("my-moe"), WHOLE)
    for folder, repo, told in (
        (files, WHOLE, "holds a mixture in 16 bit"),
        (made.with_name("my-moe"), REPO, "holds GGUF files"),
    ):
        before = there(empty_hub, repo)
        with pytest.raises(LazyMoEError, match=told):
            publish(folder, repo)
        assert there(empty_hub, repo) == before


def test_as_typed(empty_hub: Hub, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(files), REPO, "--private", "--license", "mit", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == f"{empty_hub.url}/{REPO}"
    assert empty_hub.repos[REPO].private
    assert main(["card", str(files), "--quiet"]) == 0
    assert capsys.readouterr().out == card(files)
    assert "FROM ./my-moe-Q4" in card(files)
