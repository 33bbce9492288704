"""An evaluation in a card, and as the Hub reads it: by the genuine client, from the Hub on loopback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub_server import Hub
from small_models import Make

import lazymoe
from lazymoe.output.folder import EVALUATION, open_finished

SCORES = {"base": 0.25, "mixture": 0.5}


def result(task: str, **fields: Any) -> dict[str, Any]:
    scores = {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name, value in SCORES.items()}
    spelled = {name: f"{100 * value:.1f} % (a to b)" for name, value in SCORES.items()}
    return {
        "task": task, "metric": "acc_norm", "n": 100, "shots": 5, "whole": True,
        "data": ["allenai/ai2_arc", "ARC-Easy"], "benchmark": None, "scores": scores, "spelled": spelled, "bits": None,
        **fields,
    }  # fmt: skip


@pytest.fixture
def evaluated(make: Make, tmp_path: Path) -> Path:
    """A mixture with an evaluation: of a benchmark, of a part of one, of a data set that is none, of one's own."""
    experts = [{"source_model": str(make(f"model{i}", seed=i))} for i in range(2)]
    recipe = {"base_model": str(make("base")), "gate_mode": "random", "experts": experts}
    folder = lazymoe.merge(lazymoe.Recipe.model_validate(recipe), tmp_path / "moe").folder
    results = [
        result("gsm8k", metric="exact_match,strict-match", data=["openai/gsm8k", "main"], benchmark="gsm8k"),
        result("mmlu_pro", data=["TIGER-Lab/MMLU-Pro", None], benchmark="mmlu_pro", whole=False),
        result("arc_easy"),
        result("my|questions", data=None),
        result("drop", bits=4),
    ]
    found = {
        "fingerprint": open_finished(folder).record.fingerprint, "models": list(SCORES), "results": results,
        "left_out": {}, "limit": None, "command": "lazymoe evaluate my-moe --tasks arc_easy", "versions":
        {"lm-eval": "0.4.13"}, "date": "2026-01-02T03:04:05+00:00", "verdict": "Better on <b>arc_easy</b>.",
    }  # fmt: skip
    (folder / EVALUATION).write_text(json.dumps(found))
    return folder


def test_the_card_has_a_table_and_an_index(evaluated: Path, clean_hub: Hub, tmp_path: Path) -> None:
    lazymoe.publish(evaluated, "writer/moe")
    page = huggingface_hub.hf_hub_download("writer/moe", "README.md", cache_dir=tmp_path / "cache")
    text = Path(page).read_text()
    lines = [line.strip("|") for line in text.splitlines() if "-shot, " in line]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    assert [row[1:] for row in rows] == [["25.0 % \\(a to b\\)", "50.0 % \\(a to b\\)"]] * 5
    assert rows[0][0] == "gsm8k, exact\\_match,strict-match, 5-shot, all 100 questions"
    assert "the first 100 questions" in rows[1][0] and rows[3][0].startswith("my\\")
    assert rows[4][0] == "drop, acc\\_norm, 5-shot, in 4 bit, all 100 questions"
    assert "lazymoe evaluate my-moe --tasks arc_easy" in text and "&lt;b&gt;" in text and "lm-eval 0.4.13" in text
    card = huggingface_hub.ModelCard(text)
    index = {one.dataset_name: one for one in card.data.eval_results}
    assert set(index) == {"gsm8k", "arc_easy"}  # whole, of data sets that others can have, and of the mixture as it is
    assert (index["gsm8k"].metric_value, index["gsm8k"].dataset_type) == (50.0, "openai/gsm8k")
    assert index["arc_easy"].dataset_args == {"num_few_shot": 5}


def test_the_client_takes_the_entries(evaluated: Path, clean_hub: Hub, tmp_path: Path) -> None:
    entries = getattr(huggingface_hub, "parse_eval_result_entries", None)
    if entries is None:
        pytest.skip("this huggingface_hub knows no .eval_results")
    lazymoe.publish(evaluated, "writer/moe")
    files = [name for name in huggingface_hub.list_repo_files("writer/moe") if name.startswith(".eval_results/")]
    assert files == [".eval_results/lazymoe-gsm8k.yaml"]
    text = Path(huggingface_hub.hf_hub_download("writer/moe", files[0], cache_dir=tmp_path / "cache")).read_text()
    [entry] = entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 50.0)
    assert entry.notes == "exact_match,strict-match, 5-shot, lm-eval 0.4.13"
    (evaluated / EVALUATION).unlink()
    lazymoe.publish(evaluated, "writer/moe")
    left = huggingface_hub.list_repo_files("writer/moe")
    assert not [name for name in left if "eval" in name]


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "another"}, {"results": [result("x", n="many")]}, {"results": [result("x", scores={})]},
     {"models": 3}, {"results": [result("x", spelled={"base": "1", "mixture": float("nan")})]}],
)  # fmt: skip
def test_what_is_no_evaluation_of_this_mixture_is_not_shown(change: dict[str, Any], evaluated: Path) -> None:
    assert "## Evaluation" in lazymoe.card(evaluated)
    found = json.loads((evaluated / EVALUATION).read_text())
    (evaluated / EVALUATION).write_text(json.dumps(found | change))
    assert "## Evaluation" not in lazymoe.card(evaluated)
    (evaluated / EVALUATION).write_text("[")
    assert "## Evaluation" not in lazymoe.card(evaluated)


def test_where_nothing_was_evaluated_the_card_says_nothing_of_it(evaluated: Path) -> None:
    (evaluated / EVALUATION).unlink()
    text = lazymoe.card(evaluated)
    assert "## Evaluation" not in text and "model-index" not in text
