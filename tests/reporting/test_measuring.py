"""Reports: the figures are transformers' own, and what is wrong with a mixture is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lazymoe.checkpoint.opening import open_folder
from lazymoe.cli import main
from lazymoe.demonstration.models import domains
from lazymoe.forward.tokens import load_tokenizer, windows
from lazymoe.reporting.measuring import report, trace
from lazymoe.reporting.report import Report


@pytest.fixture(scope="module")
def found(moe: Path) -> Report:
    return report(moe, [[kind.held[:4000]] for kind in domains()], device="cpu")


def expected_loss(model: torch.nn.Module, ids: torch.Tensor, real: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    known = real[:, 1:]
    return torch.nn.functional.cross_entropy(logits[known], ids[:, 1:][known]).item()


def test_losses_are_those_of_the_whole_models(found: Report, moe: Path, demo_models: Path) -> None:
    folders = {"base": demo_models / "base", "python": demo_models / "python", "mixture": moe}
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for kind, loss in zip(domains(), found.losses[name], strict=True):
            ids, real = windows(load_tokenizer(open_folder(demo_models / "base")), [kind.held[:4000]])
            assert loss == pytest.approx(expected_loss(model, ids, real), abs=1e-4)


def test_routing_is_that_of_the_whole_model(found: Report, moe: Path, demo_models: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32).eval()
    for d, kind in enumerate(domains()):
        ids, real = windows(load_tokenizer(open_folder(demo_models / "base")), [kind.held[:4000]])
        with torch.no_grad():
            logits = model(ids, output_router_logits=True).router_logits
        for layer, rows in enumerate(logits):
            first = rows.reshape(*ids.shape, -1)[real].argmax(-1)
            assert found.accuracy[layer][d] == pytest.approx((first == d).float().mean().item(), abs=2e-3)


def test_the_fitted_mixture_is_good(found: Report) -> None:
    assert found.recovered() > 0.5
    assert found.mean_accuracy > 0.6
    assert max(max(row) for layer in found.shares for row in layer) < 0.6
    assert list(found.problems()) == []
    assert all(sum(row) == pytest.approx(1) for layer in found.shares for row in layer)


def test_problems_are_said_in_plain_words(found: Report) -> None:
    to_first = [[[0.97, 0.01, 0.01, 0.01]] * 4] * len(found.shares)
    worse = {**found.losses, "mixture": [loss + 1 for loss in found.losses["average"]]}
    told = "\n".join(str(p) for p in replace(found, shares=to_first, first=to_first, losses=worse).problems())
    assert "expert english: it gets 1% of all tokens" in told
    assert "expert english: most of its own texts' tokens go to python first" in told
    assert "expert python: in all layers it gets more than 60% of all tokens first" in told
    assert "experts unicode and bytecode: all layers treat their texts alike" in told
    assert "Don't publish this one" in told


def test_the_routing_alone_takes_no_experts(found: Report, moe: Path) -> None:
    quick = report(moe, [[kind.held[:4000]] for kind in domains()], losses=False, device="cpu")
    assert (quick.shares, quick.losses) == (found.shares, {})
    assert quick.to_dict()["recovered"] is None
    assert "Loss" not in str(quick)


def test_the_command_prints_a_table_or_json(moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.yaml"
    texts.write_text(json.dumps([[kind.held[:500]] for kind in domains()]))
    assert main(["report", str(moe), "--texts", str(texts)]) == 0
    assert "recovered" in capsys.readouterr().out
    assert main(["report", str(moe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] is False


def test_what_is_no_mixture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path}: this isn't a finished mixture" in capsys.readouterr().err
    (tmp_path / "texts").write_text("just words")
    assert main(["report", str(tmp_path), "--texts", str(tmp_path / "texts")]) == 2
    assert "list of lists" in capsys.readouterr().err


def test_a_text_is_traced_token_by_token(moe: Path) -> None:
    text = "def add(a, b): return a + b"
    tokens, experts = trace(moe, text, device="cpu")
    assert "".join(tokens) == text
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32).eval()
    ids = load_tokenizer(open_folder(moe))(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[0, *ids]]), output_router_logits=True).router_logits
    assert experts == [rows[1:].argmax(-1).tolist() for rows in logits]
