"""What is published is enough, and says so before: from it alone the mixture is made again, measured, evaluated, and
written as GGUF; also if its prompts were in files on the machine that it was made on."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import hf_hub_download, snapshot_download
from small_models import recipe, write_recipe

from lazymoe import Expert, Recipe, Texts
from lazymoe.cli import main
from lazymoe.jobs.published import find_mixture
from lazymoe.output.folder import RECIPE, RECORD, open_finished, reopen
from lazymoe.publishing import publish

REPO, FILE = "writer/again", "prompts-1.jsonl"
SAID = "note: The texts of {} go along with the mixture's recipe, onto the Hub too."
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(clean_hub: Hub, demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of models on the Hub, and a file of prompts beside it."""
    folder = tmp_path / "here"
    (folder / "texts").mkdir(parents=True)
    monkeypatch.chdir(folder)
    texts = [f"Text {i}: a\u2028line\nand \u201cone more\u201d" for i in range(4)]
    (folder / "texts" / "own.txt").write_text("\n\n".join(texts))
    names = [f"acme/{tmp_path.name.strip('_.-')}-{name}" for name in ("base", "python", "english")]
    for name in names:
        clean_hub.add(name, demo_models / name.rpartition("-")[2])
    given = recipe(*names, gate_mode="cheap_embed")
    prompts: list[list[str | Texts]] = [["def add(a, b):", Texts(file="texts/own.txt", limit=3)], ["The sea was calm."]]
    pairs = zip(given.experts, prompts, strict=True)
    every = [Expert(source_model=expert.source_model, positive_prompts=listed) for expert, listed in pairs]
    write_recipe(folder / RECIPE, given.with_experts(every))
    return folder


def elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; what the mixture was made of is gone."""
    folder = here.parent / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.rmtree(here)
    return folder


def test_from_what_is_published_all_goes_on(
    clean_hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert main(["check", RECIPE]) == 0
    assert SAID.format("texts/own.txt") in capsys.readouterr().out
    assert main(["merge", RECIPE, "moe"]) == 0
    (here / "texts" / "own.txt").unlink()  # what was read once is kept
    assert main(["report", "moe", "--routing"]) == 0
    made = {path.name: path.read_bytes() for path in (here / "moe").glob("*.safetensors")}
    capsys.readouterr()
    assert main(["publish", "moe", REPO]) == 0
    assert SAID.format(FILE) in capsys.readouterr().err
    card = clean_hub.read(REPO, "README.md").decode()
    assert "It is everything needed to make this mixture again" in card and f"texts of {FILE}" in card
    assert clean_hub.read(REPO, FILE).decode().count("\n") == 3 and b"Text 3" not in clean_hub.read(REPO, FILE)

    folder = elsewhere(here, monkeypatch)
    [typed] = [block for block in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) if "lazymoe merge" in block]
    download, merge = map(shlex.split, typed.splitlines())
    assert download == ["hf", "download", REPO, RECIPE, FILE, "--local-dir", "."]
    for name in download[3:5]:
        hf_hub_download(REPO, name, local_dir=folder)
    assert main(merge[1:]) == 0
    assert {path.name: path.read_bytes() for path in (folder / "my-moe").glob("*.safetensors")} == made

    snapshot_download(REPO, local_dir=folder / "brought")
    for name in (RECIPE, FILE):
        (folder / name).unlink()  # those beside the mixture are read
    assert main(["report", "brought", "--routing"]) == 0
    assert main(["gguf", "brought", "Q8_0"]) == 0
    assert (folder / "brought-GGUF" / FILE).read_bytes() == clean_hub.read(REPO, FILE)
    found, _ = find_mixture(REPO)
    assert reopen(found).sound_plan


@pytest.mark.parametrize("options", [[], ["--gguf", "Q8_0"]])
def test_what_goes_straight_to_the_hub_has_its_prompts(
    options: list[str], clean_hub: Hub, here: Path, capsys: Captured
) -> None:
    """And what was there of another mixture goes."""
    words = ["merge", RECIPE, "--to", REPO, *options]
    assert main(words) == 0
    assert SAID.format("texts/own.txt") in capsys.readouterr().err
    assert clean_hub.read(REPO, FILE).startswith(b'"Text 0: a')
    assert f"file: {FILE}" in clean_hub.read(REPO, RECIPE).decode()
    given = Recipe.from_file(RECIPE)
    write_recipe(here / RECIPE, given.with_experts([given.experts[1], given.experts[1]]))
    assert main(words) == 0
    assert SAID[:20] not in capsys.readouterr().err
    assert FILE not in clean_hub.repos[REPO].commits[-1].files and not list(here.rglob(FILE))


@pytest.mark.parametrize("command", ["gguf {} Q8_0", "report {}", "evaluate {} --tasks arc_easy", "card {}"])
def test_a_name_on_the_hub_is_told_how_to_bring_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.format(REPO).split()) == 2
    said = capsys.readouterr().err
    assert f"hf download {REPO} --local-dir again." in said and said.count("\n") == 1


def test_prompts_that_are_deleted_stay_here(clean_hub: Hub, here: Path, capsys: Captured) -> None:
    """The card tells that they are wanted; of other files with such a name nothing goes."""
    assert main(["merge", RECIPE, "moe"]) == 0
    (here / "moe" / FILE).rename(here / "moe" / "prompts-7.jsonl")
    capsys.readouterr()
    publish(here / "moe", REPO)
    assert main(["publish", "moe", REPO]) == 0
    assert "note: " not in capsys.readouterr().err
    there = set(clean_hub.repos[REPO].commits[-1].files)
    assert {RECIPE, RECORD} <= there and not [name for name in there if name.startswith("prompts")]
    assert "prompts that lay in folders" in clean_hub.read(REPO, "README.md").decode()
    assert not open_finished(here / "moe").texts


def test_a_token_in_prompts_is_not_published(clean_hub: Hub, here: Path, capsys: Captured) -> None:
    (here / "texts" / "own.txt").write_text("Log in with hf_" + "Ab3" * 11)
    assert main(["merge", RECIPE, "moe"]) == 0
    capsys.readouterr()
    assert main(["publish", "moe", REPO]) == 2
    assert f"{FILE}: in it there is what looks like a Hugging Face token" in capsys.readouterr().err
    assert REPO not in clean_hub.repos
