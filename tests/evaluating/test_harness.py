"""Models that go through a layer at a time answer as lm-eval's own model of transformers does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazymoe.computing.shared_weights import Average
from lazymoe.evaluating.harness import ask
from lazymoe.evaluating.kept import Kept
from lazymoe.evaluating.models import KINDS, Model, find_models
from lazymoe.evaluating.tasks import Row, load_rows
from lazymoe.output.folder import open_finished
from lazymoe.reporting.measuring import reopen

SMALL = 2_000_000  # bytes: room for few tokens, so that weights are read several times, or states go to the disk
FAR = 10**15  # bytes to read a model once more, if it is far away


@pytest.fixture(scope="module")
def models(moe: Path) -> dict[str, Model]:
    found = find_models(open_finished(moe), reopen(moe), KINDS, "cpu")
    return {model.name: model for model in (each.open() for each in found)}


@pytest.fixture(scope="module")
def rows(own: list[str], texts: list[list[str]]) -> list[Row]:
    """Tasks of five kinds."""
    names = ("python", "english", "unicode", "bytecode")
    found = load_rows(own, dict(zip(names, texts, strict=True)))
    cloze = {"output_type": "loglikelihood", "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ]}  # fmt: skip
    greedily = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    return [*found, *written(texts, greedily), *written(texts, None, **cloze, task="perplexity")]


def written(texts: list[list[str]], generation: dict[str, Any] | None, **more: Any) -> list[Row]:
    """A task that wants texts of the model, or what it is turned into."""
    from datasets import Dataset

    docs = [{"question": text[:50], "answer": "self"} for text in texts[0]]
    config = {
        "task": "writing", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "answer",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}, "test_split": "test", "num_fewshot": 0,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    config |= ({"generation_kwargs": generation} if generation else {}) | more
    made = TaskManager(include_defaults=False).load([config])["tasks"]
    return [Row(name, (task,)) for name, task in made.items()]


def whole(name: str, moe: Path, demo_models: Path, model: Model) -> HFLM:
    """The same model as transformers loads it; the average made of the experts' own files."""
    folder = moe if name == "mixture" else demo_models / ("base" if name == "average" else name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if isinstance(model.weights, Average):
        states = [AutoModelForCausalLM.from_pretrained(s.folder).state_dict() for s in model.weights.experts]
        loaded.load_state_dict({key: sum(s[key] for s in states) / len(states) for key in states[0]})
    return HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(folder))


def said(found: dict[str, Any], task: str) -> list[Any]:
    """What was answered to each request of a task."""
    return [answer for sample in found["samples"][task] for one in sample["resps"] for answer in one]


def asked(model: Model, rows: list[Row], limit: int | None = None, **means: Any) -> dict[str, Any]:
    """What comes of asking a model, with little memory for states."""
    given = model.means(SMALL, Path(tempfile.gettempdir()))._replace(**means)
    return ask(
        model, rows, limit, kept=Kept(model.fingerprint), means=given, bits=None, device="cpu", passed=lambda _: None
    )


@pytest.mark.parametrize(
    ("name", "again"),
    [("base", 0), pytest.param("english", FAR, marks=pytest.mark.slow), ("average", FAR), ("mixture", FAR)],
)
def test_every_answer_and_every_metric_is_that_of_the_loaded_model(
    name: str, again: int, models: dict[str, Model], rows: list[Row], moe: Path, demo_models: Path
) -> None:
    ours = asked(models[name], rows, again=again)
    tasks = [task for row in rows for task in row.tasks]
    theirs = simple_evaluate(
        model=whole(name, moe, demo_models, models[name]), tasks=tasks, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    for task in (task.task_name for task in tasks):
        for mine, other in zip(said(ours, task), said(theirs, task), strict=True):
            if task == "writing":
                assert mine == other
            elif isinstance(other, tuple):
                assert mine[0] == pytest.approx(other[0], abs=1e-3) and mine[1] == other[1]
            else:
                assert mine == pytest.approx(other, abs=1e-3)
        for metric, value in theirs["results"][task].items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-5), metric
    kinds = {task.OUTPUT_TYPE for task in tasks}
    assert kinds == {"multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"}


def test_what_was_answered_is_not_asked_again(models: dict[str, Model], rows: list[Row], answers: Path) -> None:
    before = asked(models["base"], rows)

    def never(*_: Any) -> Any:
        raise AssertionError("this model was asked")

    import dataclasses

    deaf = dataclasses.replace(models["base"], run=never, load=never)
    after = asked(deaf, rows)
    assert after["results"] == before["results"]
    [kept] = [path for path in answers.iterdir() if path.stem == models["base"].fingerprint]
    with kept.open("a") as f:
        f.write('["half a li')  # a power cut
    again = asked(deaf, rows)
    assert again["results"] == before["results"] and kept.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("bits", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_sampled_differs_each_time_and_is_the_same_after_a_stop(
    bits: Literal[4] | None, models: dict[str, Model], texts: list[list[str]], answers: Path, tmp_path: Path
) -> None:
    """For a majority of several answers they must be several."""
    pytest.importorskip("bitsandbytes")
    [row] = written(texts, {"do_sample": True, "temperature": 1.0, "until": ["\n\n"], "max_gen_toks": 8}, repeats=3)
    kept = answers / f"{models['base'].fingerprint}.jsonl"
    before = kept.read_bytes() if kept.exists() else b""

    def ask_all() -> list[list[str]]:
        means = models["base"].means(SMALL, tmp_path)
        found = ask(
            models["base"], [row], None, kept=Kept(models["base"].fingerprint), means=means, bits=bits, device="cpu",
            passed=lambda _: None,
        )  # fmt: skip
        return [sample["resps"][0] for sample in found["samples"][row.name]]

    found = ask_all()
    assert all(len(set(each)) == 3 for each in found)
    lines = kept.read_bytes()[len(before) :].splitlines(keepends=True)
    kept.write_bytes(before + b"".join(lines[:4]))  # as if it had been stopped
    assert ask_all() == found


def test_progress_goes_up_to_the_end(models: dict[str, Model], rows: list[Row], tmp_path: Path) -> None:
    told: list[int] = []
    means = models["python"].means(SMALL, tmp_path)
    kept = Kept(models["python"].fingerprint)
    ask(models["python"], rows[:3], 4, kept=kept, means=means, bits=None, device="cpu", passed=told.append)
    assert told == sorted(told) and told[-1] == sum(row.questions(4) for row in rows[:3])
    assert len(set(told)) > 3
    assert np.isfinite(told).all()
