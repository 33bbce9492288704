"""What a report finds wrong, by first choices; the texts that it is given; and text cut into its tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazymoe import LazyMoEError, card
from lazymoe.cli import main
from lazymoe.demonstration.models import domains
from lazymoe.reporting.measuring import _cut, _decoded, read_texts, report, trace
from lazymoe.reporting.report import Report

NAMES = ["python", "english", "unicode", "bytecode"]
HELD = [[kind.held[:2000]] for kind in domains()]


def routed(first: list[list[float]], top_k: int = 2) -> Report:
    """A mixture of two layers whose first choices are these ``[D][E]``, and whose second are spread over the others."""
    n = len(first)
    others = [[(1 - share) / (n - 1) for share in row] for row in first]
    shares = [
        [(a + b * (top_k - 1)) / top_k for a, b in zip(row, rest, strict=True)]
        for row, rest in zip(first, others, strict=True)
    ]
    right = [first[d][d] for d in range(n)]
    losses = {"base": [3.0] * n, **{f"e{i}": [2.0] * n for i in range(n)}, "average": [2.8] * n, "mixture": [2.1] * n}
    return Report(
        [f"e{i}" for i in range(n)], True, losses, [shares] * 2, [right] * 2, [0.5] * 2, [1] * n, top_k, [first] * 2
    )


def codes(found: Report) -> list[str]:
    return [problem.code for problem in found.problems()]


def test_a_mixture_that_is_right_is_not_accused() -> None:
    first = [[0.89, 0.11], [0.11, 0.89]]
    for top_k in (1, 2):
        found = routed(first, top_k)
        assert codes(found) == []
    even = routed(first)
    assert np.allclose(even.shares, 0.5)  # each token is sent to both experts, whatever the router says
    assert found.recovered() == pytest.approx(0.9)
    three = routed([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], top_k=3)
    assert np.allclose(three.shares, 1 / 3) and codes(three) == []


def test_texts_that_are_treated_alike_are_told() -> None:
    told = [str(p) for p in routed([[0.5, 0.5], [0.48, 0.52]]).problems()]
    assert any(line.startswith("experts e0 and e1: all layers treat their texts alike") for line in told)
    assert "report.alike" in codes(routed([[0.1, 0.9], [0.9, 0.1]]))  # which is no better
    two = routed([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.05, 0.05, 0.9]])
    assert [p.where for p in two.problems() if p.code == "report.alike"] == ["experts e0 and e1"]


def test_an_expert_with_a_layer_to_itself_is_told_with_two_for_each_token() -> None:
    told = [str(p) for p in routed([[0.9, 0.05, 0.05], [0.6, 0.35, 0.05], [0.6, 0.05, 0.35]]).problems()]
    assert any("expert e0: in all layers it gets more than 60% of all tokens first" in line for line in told)
    assert any("expert e1: most of its own texts' tokens go to e0 first" in line for line in told)


def test_a_report_without_first_choices_is_judged_by_all_of_them() -> None:
    old = replace(routed([[0.5, 0.5], [0.48, 0.52]], top_k=1), first=[])
    assert "report.alike" in codes(old)


@pytest.fixture(scope="module")
def found(moe: Path) -> Report:
    return report(moe, HELD, losses=False, device="cpu")


def test_first_choices_are_measured(found: Report, moe: Path, tmp_path: Path) -> None:
    first = np.array(found.first)
    assert first.shape == np.array(found.shares).shape and np.allclose(first.sum(-1), 1)
    assert np.allclose(np.diagonal(first, axis1=1, axis2=2), found.accuracy)
    found.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["first"] == found.first


def test_a_report_of_before_still_stands_in_the_card(found: Report, moe: Path) -> None:
    old = found.to_dict()
    del old["first"]
    (moe / "report.json").write_text(json.dumps(old))
    assert f"{100 * found.mean_accuracy:.0f} % of the tokens of an expert's own texts go to it first" in card(moe)
    (moe / "report.json").unlink()


def test_texts_go_by_name_or_number(found: Report, moe: Path, tmp_path: Path) -> None:
    texts: dict[Any, Any] = {"bytecode": HELD[3], 2: HELD[1], "python": [*HELD[0], " "], "3": HELD[2][0]}
    (tmp_path / "texts.yaml").write_text(json.dumps({str(k): v for k, v in texts.items()}))
    for given in (read_texts(tmp_path / "texts.yaml"), {**texts, "3": HELD[2]}):
        assert report(moe, given, losses=False, device="cpu").shares == found.shares


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"pyhton": HELD[0]}, "there is no expert 'pyhton'. Did you mean 'python'?"),
        ({5: HELD[0]}, "there is no expert '5'. Known are: bytecode, english, python, unicode."),
        ({0: HELD[0]}, "there is no expert '0'."),
        ({"python": ["x"], 1: ["x"]}, "there are two lists for python"),
        ({"python": ["x"], "english": ["x"]}, "there are none for unicode, bytecode"),
        ({**dict(zip(NAMES, HELD, strict=True)), "english": ["", " "]}, "there are none for english"),
        (HELD[:3], "4 experts need a list of texts each"),
        ([*HELD[:3], [" "]], "there are none for bytecode"),
        ([*HELD[:3], ["a"]], "those for bytecode are too short"),
    ],
)
def test_texts_for_nobody_or_none_are_one_line(moe: Path, texts: Any, said: str) -> None:
    with pytest.raises(LazyMoEError) as caught:
        report(moe, texts, losses=False, device="cpu")
    (problem,) = caught.value.problems
    assert problem.code == "input.texts" and said in str(problem)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "list of lists"),
        ("- one\n- two", "list of lists"),
        ("python: [1]", "list of lists"),
        ("python:", "list of lists"),
        ("python: [a]\npython: [b]", "line 2: the key 'python' stands here and in line 1 too"),
        ("python: [a", "isn't valid YAML"),
    ],
)
def test_a_file_of_something_else_is_one_line(
    moe: Path, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.yaml").write_text(text)
    assert main(["report", str(moe), "--texts", str(tmp_path / "texts.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and str(tmp_path / "texts.yaml") in line


@pytest.mark.parametrize(
    "text",
    [
        "a \U0001f9e9 puzzle",
        "中文字符、你好",
        "naïve café — «dit-elle»",
        "  two  spaces \n",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467!",
        "e\u0301",
    ],
)
def test_tokens_are_whole_characters(moe: Path, text: str) -> None:
    tokens, experts = trace(moe, text, device="cpu")
    assert "".join(tokens) == text
    assert all(len(layer) == len(tokens) for layer in experts)
    assert len(tokens) >= len(text) / 2


def test_a_long_text_ends_with_a_whole_character(moe: Path) -> None:
    text = "\U0001f9e9" * 100
    tokens, _ = trace(moe, text, device="cpu")
    assert len(tokens) == 256 and text.startswith("".join(tokens)) and "\ufffd" not in "".join(tokens)


def test_cutting() -> None:
    assert _cut("a bc", [(0, 1), (2, 3), (3, 4)]) == ["a", " b", "c"]
    assert _cut("x\U0001f9e9y", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]) == ["x", "", "", "\U0001f9e9", "y"]
    assert _cut(" a ", [(1, 2)]) == [" a "]


def test_tokens_without_places_are_decoded_to_whole_characters() -> None:
    class Bytes:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    text = "né🧩!"
    assert _decoded(Bytes(), list(text.encode())) == ["n", "", "é", "", "", "", "🧩", "!"]
