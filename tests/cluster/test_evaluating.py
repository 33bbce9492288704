"""An evaluation on a cluster: the figures of one process, from machines that each ask some of the models."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hub_server import Hub
from ray_nodes import Nodes

pytest.importorskip("ray")
pytest.importorskip("lm_eval", reason="EleutherAI's lm-eval isn't installed")

from lazymoe import LazyMoEError, evaluate, merge
from lazymoe.cli import main
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.evaluating import machines
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.evaluating.kept import answers_folder
from lazymoe.output.folder import EVALUATION

pytestmark = pytest.mark.slow
NAMES = [kind.name for kind in domains()]


@pytest.fixture(scope="module")
def moe(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(
        demo_recipe(demo_models, domains(), "fit"), tmp_path_factory.mktemp("moe") / "moe", device="cpu"
    ).folder


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of questions beside this process, by its relative name, and no answer kept anywhere here."""
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(answers_folder(), ignore_errors=True)
    lines = [{"question": kind.held[i : i + 40], "answer": kind.held[i + 40 : i + 60].strip() or "x"}
             for kind in domains() for i in range(0, 400, 40)]  # fmt: skip
    Path("open.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "open.jsonl"


def figures(found: Evaluation) -> dict[str, object]:
    """All but when it was measured."""
    return found.to_dict() | {"date": ""}


def test_the_figures_are_those_of_one_process(
    asked: str, moe: Path, nodes: Nodes, clean_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "OFTEN", 0.0)
    texts = [[kind.held[:2000]] for kind in domains()]
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((done, total))

    there = evaluate(moe, asked, texts=texts, on=nodes.address, progress=progress)
    kept = {path.name: path.read_bytes() for path in answers_folder().iterdir()}
    assert len(kept) == len(there.models) == 2 + 1 + len(NAMES)  # all have come here
    assert told[0] == (0, told[-1][1]) and told[-1][0] == told[-1][1]
    each = told[-1][1] // len(there.models)
    assert any(done % each for done, _ in told)  # a model tells how far it is while it is asked
    shutil.rmtree(answers_folder())
    assert figures(there) == figures(evaluate(moe, asked, texts=texts, device="cpu"))
    assert {name: sorted(path.splitlines()) for name, path in kept.items()} == {
        path.name: sorted(path.read_bytes().splitlines()) for path in answers_folder().iterdir()
    }


def test_machines_that_die_are_done_without_until_none_is_left(asked: str, moe: Path, nodes: Nodes) -> None:
    killed: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if done and not killed:
            killed.append(done)
            nodes.kill()

    found = evaluate(moe, asked, on=nodes.address, progress=progress)
    assert killed and figures(found) == figures(evaluate(moe, asked, device="cpu"))

    def kill_all(stage: str, done: int, total: int) -> None:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[0].startswith("ray::Machine"):
                    process.kill()

    with pytest.raises(LazyMoEError, match="what asks dies on one machine after the other"):
        evaluate(moe, asked, limit=4, models="base", on=nodes.address, progress=kill_all)


def test_the_command_says_the_same_and_what_a_machine_lacks(
    asked: str, moe: Path, nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(moe), "--tasks", asked, "--limit", "5", "--models", "base,mixture"]
    assert main([*arguments, "--on", nodes.address]) == 0
    assert "mixture against the base model" in capsys.readouterr().out
    assert json.loads((moe / EVALUATION).read_text())["models"] == ["base", "mixture"]
    assert main([*arguments, "--on", nodes.address, "--device", "cuda"]) == 2
    assert "a cluster computes on processors" in capsys.readouterr().err
