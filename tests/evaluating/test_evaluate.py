"""The whole way: the command, what it says and what it saves, a stop and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub

import lazymoe
import lazymoe.evaluating.kept
from lazymoe.cli import main
from lazymoe.demonstration.models import domains
from lazymoe.evaluating import asking
from lazymoe.evaluating import evaluate as ways
from lazymoe.evaluating.evaluation import Evaluation
from lazymoe.files import cache
from lazymoe.forward import spilling
from lazymoe.output.folder import EVALUATION, open_finished

NAMES = [kind.name for kind in domains()]
LITTLE = 40_000  # bytes, for states
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def found(moe: Path, own: list[str], texts: list[list[str]], benchmarks: Hub) -> Evaluation:
    return lazymoe.evaluate(moe, ["arc_easy", *own], texts=texts, limit=8, device="cpu")


def test_everybody_is_asked_the_same(found: Evaluation) -> None:
    assert found.models == ["base", *NAMES, "average", "mixture"]
    rows = ["arc_easy", "closed", "open", *(f"texts of {name}" for name in NAMES)]
    assert [result.task for result in found.results] == rows
    metrics = [result.metric for result in found.results]
    assert metrics == ["acc_norm", "acc_norm", "acc", *["bits_per_byte"] * 4]
    assert [result.n for result in found.results] == [8, 8, 8, 4, 4, 4, 4]
    for result in found.results:
        assert list(result.scores) == found.models and list(result.differences) == found.models[:-1]
        for name, score in result.scores.items():
            assert score.value == pytest.approx(result.metrics[name][result.task][f"{result.metric},none"])
            if name != "mixture":
                apart = result.scores["mixture"].value - score.value
                assert result.differences[name].value == pytest.approx(apart)
                wide, narrow = result.changes[name], result.differences[name]
                assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 4])
def test_a_task_that_wants_texts_is_written_by_the_loaded_models(
    bits: int | None, moe: Path, benchmarks: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 4 bit where nothing else fits, and what came out says so."""
    if bits:
        pytest.importorskip("bitsandbytes")
        record = open_finished(moe).record
        monkeypatch.setattr(asking, "free_memory", lambda device: (record.bytes + record.bytes_4bit) // 2)
    found = lazymoe.evaluate(moe, "gsm8k:1", limit=2, models="base,average,mixture", device="cpu")
    [result] = found.results
    assert (result.metric, result.n, result.shots) == ("exact_match,strict-match", 2, 1)
    assert set(result.metrics) == {"base", "average", "mixture"} and found.left_out == {}
    assert result.bits == bits and ("written in 4 bit" in str(found)) == bool(bits)


def test_a_mixture_knows_each_domain_better_than_the_base_model(found: Evaluation) -> None:
    """And better than an expert of another; on a handful of questions that nobody knows nothing is claimed."""
    own = {result.task: result for result in found.results}
    for name in NAMES:
        result = own[f"texts of {name}"]
        assert not result.higher
        assert result.scores[name].value < result.scores["mixture"].value < result.scores["base"].value
    assert all(own["arc_easy"].better(name) == 0 for name in found.models[:-1])
    assert "no difference at this number of questions on" in found.against("base")
    assert "arc_easy" in found.against("base").partition("no difference")[2]


def test_the_command_says_and_saves_it(
    moe: Path, own: list[str], found: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(moe), "--tasks", ",".join(own), "--limit", "8", "--device", "cpu"]
    assert main([*command, "--models", "mixture,base"]) == 0
    said = capsys.readouterr()
    assert "closed: acc_norm, higher is better; 8 questions" in said.out
    assert "The mixture against the base model: " in said.out and str(moe / EVALUATION) in said.out
    assert said.err.splitlines() == ["Evaluating: 0% of 32 questions", "Evaluating: 100% of 32 questions"]
    saved = json.loads((moe / EVALUATION).read_text())
    assert saved["models"] == ["base", "mixture"]
    assert saved["command"].endswith("--limit 8 --models base,mixture")
    report = lazymoe.report(moe, losses=False, device="cpu")
    assert report.verdict == report.benchmarks == saved["verdict"] and saved["verdict"] in str(report)
    assert main([*command, "--json", "--quiet"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    for result, before in zip(told["results"], found.results[1:], strict=False):
        assert result["scores"]["mixture"]["value"] == before.scores["mixture"].value  # what was kept


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "tasks: there are none. Name lm-eval's, a file of questions (.jsonl), or a suite: quick"),
        (["--tasks", "x.jsonl", "--models", "experts,mix"], "models: there is no 'mix'. Did you mean 'mixture'?"),
        (["--tasks", "x.jsonl", "--models", ","], "models: none is named"),
        (["--tasks", "x.jsonl", "--limit", "0"], "limit: 0 is no number of questions"),
        (["--tasks", "x.jsonl", "--device", "mars"], "device: there is no 'mars' here"),
        (["--tasks", "x.jsonl", "--memory", "much"], "'much' isn't a size such as 4GB or 500MB"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    options: list[str], words: str, moe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(moe), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_where_nothing_can_be_loaded_nothing_is_written(
    moe: Path, own: list[str], benchmarks: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "free_memory", lambda device: 10_000)
    found = lazymoe.evaluate(moe, [*own, "gsm8k"], limit=2, models="base,mixture", device="cpu")
    assert [result.task for result in found.results] == ["closed", "open"]
    assert "it wants texts of the model, which takes" in found.left_out["gsm8k"]
    assert "Left out: gsm8k: " in str(found)
    with pytest.raises(lazymoe.LazyMoEError, match="Name tasks that only ask what is likely"):
        lazymoe.evaluate(moe, "gsm8k", device="cpu")


def test_without_bitsandbytes_nothing_is_written_in_4_bit(
    moe: Path, own: list[str], benchmarks: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = open_finished(moe).record
    monkeypatch.setattr(asking, "free_memory", lambda device: (record.bytes + record.bytes_4bit) // 2)
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    found = lazymoe.evaluate(moe, [*own, "gsm8k"], limit=2, models="mixture", device="cpu")
    assert "or the package bitsandbytes for 4 bit" in found.left_out["gsm8k"]


@pytest.mark.skipif(not FULL.exists(), reason="it is Linux that has a full disk to try")
def test_what_has_no_room_goes_through_the_disk(
    moe: Path, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mixture's too, and what it answers is the same; a full disk is told in a line."""
    create, begun = tempfile.TemporaryFile, list[Path]()

    def noted(**options: Any) -> Any:
        begun.append(options["dir"])
        return create(**options)

    def ask(memory: int | None, name: str) -> list[Any]:
        monkeypatch.setattr(lazymoe.evaluating.kept, "answers_folder", lambda: tmp_path / name)
        return lazymoe.evaluate(moe, own, models="mixture", memory=memory, device="cpu").results

    monkeypatch.setattr(spilling.tempfile, "TemporaryFile", noted)
    here = ask(None, "here")
    assert not begun
    assert ask(LITTLE, "there") == here
    assert set(begun) == {cache()}
    monkeypatch.setattr(spilling.tempfile, "TemporaryFile", lambda **_: FULL.open("r+b", buffering=0))
    with pytest.raises(lazymoe.OutputError, match="Make room and evaluate again: it goes on") as caught:
        ask(LITTLE, "full")
    assert [problem.code for problem in caught.value.problems] == ["output.full"] and "\n" not in str(caught.value)


def test_no_code_of_a_model_runs(moe: Path, own: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load = asking.load_rows

    def unsafe(*arguments: Any) -> list[Any]:
        rows = load(*arguments)
        rows[0].tasks[0].UNSAFE_CODE = True  # as lm-eval marks HumanEval
        return rows

    monkeypatch.setattr(asking, "load_rows", unsafe)
    found = lazymoe.evaluate(moe, own, limit=2, models="base", device="cpu")
    assert found.left_out == {"closed": "it runs code that a model has written"}
    assert [result.task for result in found.results] == ["open"]


RUN = """
import sys
import lazymoe
found = lazymoe.evaluate(sys.argv[1], sys.argv[2:], memory=1_000_000, device="cpu")
found.save(__import__("pathlib").Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(moe: Path, own: list[str], tmp_path: Path, demo_models: Path) -> None:
    """What was answered before the kill stays, and the figures are those of a run that nobody stopped."""

    def start(cache: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        return subprocess.Popen([sys.executable, "-c", RUN, str(moe), *own], env=environment)

    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (tmp_path / "b" / "lazymoe" / "answers").glob("*")}

    assert start(tmp_path / "a").wait() == 0
    expected = json.loads((moe / EVALUATION).read_text())["results"]
    killed = start(tmp_path / "b")
    while killed.poll() is None and len(kept()) < 3:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = kept()
    assert start(tmp_path / "b").wait() == 0
    assert json.loads((moe / EVALUATION).read_text())["results"] == expected
    assert len(kept()) == len(NAMES) + 3 and all(kept()[name] >= size for name, size in before.items())


def test_a_changed_mixture_is_asked_anew(moe: Path, own: list[str]) -> None:
    before = lazymoe.evaluate(moe, own, models="mixture", device="cpu").results
    [weights] = moe.glob("model-*.safetensors")
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros_like(t) for name, t in load_file(weights).items()}, weights)
    after = lazymoe.evaluate(moe, own, models="mixture", device="cpu").results
    assert after[1].metrics != before[1].metrics
