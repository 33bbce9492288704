"""Reports: what the figures mean, said in words, and kept beside the mixture for its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from lazymoe.reporting.report import Report

GOOD = Report(
    names=["code", "prose"],
    held_out=True,
    losses={
        "base": [3.0, 3.0],
        "code": [2.0, 3.2],
        "prose": [3.4, 2.0],
        "average": [2.75, 2.75],
        "mixture": [2.25, 2.5],
    },
    shares=[[[0.75, 0.25], [0.25, 0.75]], [[0.65, 0.35], [0.45, 0.55]]],
    accuracy=[[0.8, 0.6], [0.7, 0.5]],
    entropy=[0.5, 0.25],
    active=[60_000_000, 100_000_000],
    top_k=2,
)


def test_figures() -> None:
    assert GOOD.recovered() == pytest.approx((6 - 4.75) / (6 - 4))
    assert [GOOD.recovered(domain=d) for d in (0, 1)] == pytest.approx([0.75, 0.5])
    assert GOOD.recovered("average") == pytest.approx(0.25) and GOOD.recovered("base") == 0
    assert GOOD.mean_accuracy == pytest.approx(0.65)
    assert GOOD.mean_shares == [pytest.approx([0.7, 0.3]), pytest.approx([0.35, 0.65])]
    assert GOOD.load == [pytest.approx([0.5, 0.5]), pytest.approx([0.55, 0.45])]
    same = replace(GOOD, losses={name: [2.0, 2.0] for name in GOOD.losses})
    assert same.recovered() == 1  # the experts learnt nothing that could be lost


def test_it_is_said_in_words() -> None:
    text = str(GOOD)
    assert text.startswith("Loss on held-out text; lower is better:")
    [mixture] = [line.split() for line in text.splitlines() if line.startswith("mixture ")]
    assert mixture == ["mixture", "2.250", "2.500", "2.375", "62%"]
    [row] = [line.split() for line in text.splitlines() if line.startswith("to code ")]
    assert row == ["to", "code", "70%", "35%"]
    assert "65% to their own expert first" in text
    assert "A token meets 100.0M parameters; with 'experts_per_token: 1' 60.0M, 40% fewer." in text
    assert "warning" not in text and "layer 0" not in text
    own = str(replace(GOOD, held_out=False, top_k=1))
    assert "the routers' own prompts (give --texts for an honest figure)" in own and "A token meets" not in own


def test_a_sentence_sums_it_up() -> None:
    assert GOOD.verdict == (
        "62% of what the experts gain over the base model is recovered; "
        "the plain average of the experts' weights recovers 25%."
    )
    assert GOOD.verdict in str(GOOD) and GOOD.to_dict()["verdict"] == GOOD.verdict
    worse = replace(GOOD, losses=GOOD.losses | {"mixture": [2.9, 2.8]})
    assert worse.verdict.startswith("Worse than the plain average of its experts: don't publish it. 15% of what")
    useless = replace(GOOD, losses=GOOD.losses | {"base": [1.9, 1.9]})
    assert "no better than the base model" in useless.verdict
    assert replace(GOOD, losses={}).verdict == ""


def test_layers_have_a_line_each() -> None:
    _, _, head, *lines = GOOD.layers().splitlines()
    assert head.split() == ["code", "prose", "right"]
    assert [line.split() for line in lines] == [
        ["layer", "0", "50%", "50%", "70%"],
        ["layer", "1", "55%", "45%", "60%"],
    ]


def test_long_names_leave_room_between_the_columns() -> None:
    long = "a-name-that-is-quite-long-indeed"
    text = replace(GOOD, names=[long, "prose"], losses={}).layers()
    assert f" {long}  " in text


PROBLEMS = {
    "unused": ({"shares": [[[0.9, 0.1], [0.9, 0.1]]] * 2}, "expert prose", "it gets 10% of all tokens"),
    "astray": ({"shares": [[[0.75, 0.25], [0.6, 0.4]]] * 2}, "expert prose", "go to code"),
    "crowded": ({"shares": [[[0.9, 0.1], [0.5, 0.5]], GOOD.shares[1]]}, "expert code", "in layer 0 it gets more than"),
    "alike": ({"shares": [GOOD.shares[0], [[0.5, 0.5], [0.45, 0.55]]]}, "experts code and prose",
              "layer 1 treat their texts alike"),
    "worse": ({"losses": GOOD.losses | {"mixture": [2.75, 2.8]}}, "the mixture", "worse than the plain average"),
}  # fmt: skip


@pytest.mark.parametrize("code", PROBLEMS)
def test_problems_are_said_in_plain_words(code: str) -> None:
    assert list(GOOD.problems()) == []
    fields, where, words = PROBLEMS[code]
    bad = replace(GOOD, **fields)
    [problem] = [p for p in bad.problems() if p.code == f"report.{code}"]
    assert problem.where == where and words in problem.what and problem.remedy
    assert f"warning: {problem}" in str(bad)
    assert problem.to_dict() in bad.to_dict()["problems"]


def test_first_choices_count_where_all_experts_get_every_token() -> None:
    even = replace(GOOD, shares=[[[0.5, 0.5]] * 2] * 2)
    assert "report.alike" in [p.code for p in even.problems()]
    assert list(replace(even, first=GOOD.shares).problems()) == []


def test_it_is_kept_as_json_and_pictures(tmp_path: Path) -> None:
    assert GOOD.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(GOOD.to_dict()))
    light, dark = (imread(tmp_path / name) for name in ("routing.png", "routing-dark.png"))
    assert light.shape == dark.shape
    assert light[0, 0, :3].mean() == 1
    assert dark[0, 0, :3].mean() < 0.1
    before = (tmp_path / "routing.png").read_bytes()
    assert GOOD.save(tmp_path)
    assert (tmp_path / "routing.png").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"report.json", "routing.png", "routing-dark.png"}


def test_losses_that_were_measured_are_not_lost(tmp_path: Path) -> None:
    routing = replace(GOOD, losses={}, held_out=False)
    assert routing.to_dict()["recovered"] is routing.to_dict()["recovered_mean"] is None
    assert routing.save(tmp_path)  # nothing there yet
    assert GOOD.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert not routing.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert replace(GOOD, top_k=1).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["top_k"] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"losses": {}}'])
def test_what_is_no_report_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert replace(GOOD, losses={}).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["names"] == GOOD.names
