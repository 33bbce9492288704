"""The demo: the models it trains learn their domains, and its table tells the truth about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import contents
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazymoe import Demo, demo
from lazymoe.cli import main
from lazymoe.demonstration.models import domains


@pytest.fixture(scope="module")
def result(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.mktemp("demo") / "moe")


def test_each_expert_is_best_at_what_it_was_trained_on(result: Demo) -> None:
    for i, domain in enumerate(result.domains):
        own = result.losses[f"expert {domain}"]
        assert own[i] == min(row[i] for name, row in result.losses.items() if name.startswith(("base", "expert")))


def test_losses_are_those_that_transformers_computes(result: Demo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.float32).eval()
    for kind, loss in zip(domains(), result.losses["MoE, fitted routers"], strict=True):
        ids = torch.tensor(tokenizer(kind.held, add_special_tokens=False)["input_ids"])
        windows = ids[: len(ids) // 127 * 127].reshape(-1, 127)
        total = [
            model(w[None], labels=w[None]).loss.item() for w in (torch.cat([ids.new_zeros(1), w]) for w in windows)
        ]
        assert loss == pytest.approx(sum(total) / len(total), abs=1e-3)


def test_fitted_routers_beat_mergekits_and_the_average_everywhere(result: Demo) -> None:
    ours = result.losses["MoE, fitted routers"]
    for rival in ("MoE, random routers", "MoE, hidden routers", "plain average of experts", "base"):
        assert all(a < b for a, b in zip(ours, result.losses[rival], strict=True)), rival
    assert all(max(row) == row[i] for i, row in enumerate(result.shares))


def test_shares_are_shares(result: Demo) -> None:
    assert [sum(row) for row in result.shares] == pytest.approx([1.0] * len(result.domains))


def test_the_table_has_all_figures(result: Demo) -> None:
    lines = str(result).splitlines()
    for name, row in result.losses.items():
        (line,) = [line for line in lines if line.startswith(name + " ")]
        assert line.split()[-len(row) - 1 :] == [f"{x:.2f}" for x in [*row, sum(row) / len(row)]]


def test_the_command_tells_the_same(
    result: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lazymoe.demonstration.story.demo", lambda folder, progress: result)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == f"{result}\n"
    assert main(["demo", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{result.folder}\n"
    assert main(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and (found["losses"], found["folder"]) == (result.losses, str(result.folder))


def test_held_out_text_is_not_in_the_training_text() -> None:
    for kind in domains():
        assert kind.held[:2000] not in kind.train
        assert not any(prompt in kind.held for prompt in kind.prompts), kind.name


def test_the_models_are_cached(demo_models: Path) -> None:
    from lazymoe.demonstration.models import build

    before = contents(demo_models)
    build(demo_models)
    assert contents(demo_models) == before
