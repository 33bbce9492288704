"""The panel to try a mixture in, without a front end: a text's routing as HTML, a comparison, a chat by Enter."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets as w
import pytest

from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.merging import merge as merge_recipe
from lazymoe.notebook.asking import CONTINUES
from lazymoe.notebook.chat import Chat
from lazymoe.notebook.comparison import Comparison
from lazymoe.notebook.routing import COLOURS, TINT, Piece, characters, show, words
from lazymoe.notebook.session import SESSION, Session
from lazymoe.notebook.try_panel import try_it


@pytest.fixture
def session(tmp_path: Path, demo_models: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The notebook's state with a mixture, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    SESSION.__init__()  # type: ignore[misc]
    SESSION.change(yaml=demo_recipe(demo_models, domains(), "random").to_yaml(), name="made")
    assert SESSION.recipe
    merge_recipe(SESSION.recipe, SESSION.out)
    return SESSION


def texts(pieces: Sequence[Piece]) -> list[str]:
    return [piece.text for piece in pieces]


@pytest.mark.parametrize(
    ("tokens", "whole"),
    [
        (["a", "", "", "🧩", "b"], ["a", "🧩", "b"]),
        (["e", "\u0301", "t"], ["e\u0301", "t"]),
        (["👩", "\u200d", "", "👧", "!"], ["👩\u200d👧", "!"]),
        (["👍", "", "🏽", "❤", "\ufe0f"], ["👍🏽", "❤\ufe0f"]),
        (["a", "", ""], ["a"]),  # the rest of a character was beyond the window
    ],
)
def test_the_tokens_of_a_character_are_one(tokens: list[str], whole: list[str]) -> None:
    pieces = characters(tokens, [[0] * len(tokens)] * 2)
    assert texts(pieces) == whole
    ended = len(tokens) - (tokens[-1] == "") * 2
    assert sum(len(piece.experts) for piece in pieces) == ended


def test_words_are_whole_and_what_has_no_spaces_is_token_by_token() -> None:
    tokens = ["def", " a", "dd", "(", "x", "_", "1", "): ", "中文", "字", "né", "e"]
    assert texts(list(words(characters(tokens, [[0] * len(tokens)])))) == [
        "def", " add", "(", "x_1", "): ", "中文", "字", "née",
    ]  # fmt: skip


def test_a_word_is_the_experts_of_most_choices() -> None:
    word = Piece("add", [(0, 1), (1, 1)])
    assert word.expert == 1 and word.shares == [(1, 0.75), (0, 0.25)]
    assert Piece("tie", [(2, 1)]).expert == 2  # the earlier layer's


def test_shares_are_per_cent_of_tokens() -> None:
    shown = show(["one", "two"], ["a", " b", " c", "", " d"], [[0, 0, 1, 1, 0], [0, 1, 1, 1, 0]])
    legend = re.sub("<[^>]*>", " ", shown.partition("</ul>")[0])
    assert legend.split() == ["1", "one", "60%", "2", "two", "40%"]
    assert "aria-label='Share of the 5 tokens'" in shown
    assert "title='1 one 50%, 2 two 50%'" in shown  # of " b", whose layers differ
    assert "title='1 one 60%' style='width:60.00%" in shown and "1: 60%" in shown  # of layer 0
    rows = re.findall(r"<tr>.*?</tr>", shown)
    assert len(rows) == 1 + 4 and "layers 0 to 1" in rows[0]
    assert re.findall(r"colspan='(\d)'[^>]*>(\d)<", rows[2]) == [("1", "1"), ("1", "2")]
    assert re.findall(r"colspan='(\d)'[^>]*>(\d)<", rows[1]) == [("2", "1")]
    assert "<details>" in shown and "<details open" not in shown


def test_spaces_are_kept_and_bear_no_tint() -> None:
    shown = show(["one", "two"], ["  a", " b", "  ", "\n", "c "], [[0, 0, 0, 1, 1]])
    [text] = re.findall("<p class='lazymoe-routed'>(.*)</p>", shown, re.DOTALL)
    assert re.sub("<sup>.*?</sup>", "", re.sub("<span class='lazymoe-token[^>]*>|</span>(?!</sup>)", "", text)) == (
        "  a b  \nc "
    )
    assert not re.search(r"<span class='lazymoe-token[^>]*>\s", text) and text.count("<sup>") == 2


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "' onmouseover='x", '" x="', "&lt;b&gt;"])
def test_names_and_tokens_are_escaped(evil: str) -> None:
    shown = show([evil, "two"], [evil, " b"], [[0, 1]])
    assert evil not in shown and html.escape(evil) in shown


def test_a_text_of_no_tokens_shows_nothing() -> None:
    assert show(["one"], [], [[]]) == ""


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG's contrast of two colours, of 0 to 255."""
    light = []
    for colour in (one, other):
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in (c / 255 for c in colour)]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize(("page", "ink"), [(255, 33), (17, 255), (56, 255)], ids=["light", "dark", "Colab's dark"])
@pytest.mark.parametrize("colour", COLOURS)
def test_ink_is_readable_on_every_tint(colour: str, page: int, ink: int) -> None:
    opacity = int(TINT, 16) / 255
    tinted = [opacity * int(colour[i : i + 2], 16) + (1 - opacity) * page for i in (1, 3, 5)]
    assert contrast(tinted, [ink] * 3) > 4.5


def enter(box: w.Text, text: str) -> None:
    """Type and press Enter: the front end tells of the key first."""
    box.value = text
    box._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "submit"}}}, "buffers": []})


def test_enter_sends(session: Session) -> None:
    chat = Chat()
    enter(chat.question, "The name of the object")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] and chat.messages[1]["content"]
    assert chat.question.value == "" and CONTINUES not in chat.log.value
    enter(chat.question, "<b>bold</b>")
    assert len(chat.messages) == 4 and "<b>bold</b>" not in chat.log.value


def without_template(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_what_is_no_chat_model_is_told(session: Session) -> None:
    without_template(session.out)
    chat = Chat()
    enter(chat.question, "The name of")
    assert CONTINUES in chat.log.value and chat.messages[1]["content"]
    comparison = Comparison(chat)
    comparison.offer(session.merged)
    enter(comparison.question, "The name of")
    assert [CONTINUES in column.told for column in comparison.columns] == [False, False, True]


def test_three_models_answer_one_question(session: Session, demo_models: Path) -> None:
    chat = Chat()
    enter(chat.question, "The name")
    comparison = Comparison(chat)
    comparison.offer(session.merged)
    assert [label for label, _ in comparison.expert.options] == [
        "1 · python", "2 · english", "3 · unicode", "4 · bytecode",
    ]  # fmt: skip
    comparison.expert.value = 2
    enter(comparison.question, "The name of the object")
    assert [(column.title, column.name) for column in comparison.columns] == [
        ("Base model", "base"), ("Expert 2", "english"), ("Mixture", "made"),
    ]  # fmt: skip
    assert all(column.text and column.told.endswith(" s.") for column in comparison.columns)
    assert comparison.columns[0].text == answer_of(demo_models / "base", "The name of the object")
    assert comparison.columns[1].text == answer_of(demo_models / "english", "The name of the object")
    assert chat.loaded is None and chat.messages  # room was made, the talk is still there
    assert comparison.shown.value.count("<section") == 3 and not comparison.told.value


def answer_of(folder: Path, question: str) -> str:
    """What transformers alone makes of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat: Any = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=1)
    decoded: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return decoded


def test_a_model_that_is_gone_is_told_and_the_others_answer(
    session: Session, demo_models: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_models / "english", tmp_path / "gone")
    assert session.recipe
    recipe = session.recipe.model_dump()
    recipe["experts"][1]["source_model"] = str(tmp_path / "gone")
    session.change(yaml=json.dumps(recipe), name="again")
    assert session.recipe
    merge_recipe(session.recipe, session.out)
    shutil.rmtree(tmp_path / "gone")
    comparison = Comparison(Chat())
    comparison.offer(session.merged)
    comparison.expert.value = 2
    enter(comparison.question, "The name")
    base, expert, mixture = comparison.columns
    assert base.text and mixture.text and not expert.text
    assert expert.told.startswith("Can't be compared: experts[1].source_model (expert 2 of 4)")


def test_one_model_at_a_time(session: Session) -> None:
    """While one panel is at work with a model, the other loads none."""
    busy: Any = SimpleNamespace(goes_on=True)
    chat = Chat()
    chat.rival = busy
    enter(chat.question, "The name")
    assert "one model" in chat.told.value and chat.loaded is None and not chat.messages
    comparison = Comparison(chat)
    comparison.offer(session.merged)
    chat.work = busy
    enter(comparison.question, "The name")
    assert "one model" in comparison.told.value and not comparison.columns


def test_a_comparison_can_be_stopped_and_begun_anew(session: Session, untraced: None) -> None:
    comparison = Comparison(Chat())
    comparison.offer(session.merged)
    draw = comparison.work._show
    comparison.work._show = lambda *progress: comparison.work.stop()
    enter(comparison.question, "The name")
    assert "Stopped. Press Compare to begin anew." in comparison.told.value and len(comparison.columns) < 3
    comparison.work._show = draw
    enter(comparison.question, "The name")
    assert len(comparison.columns) == 3 and all(column.text for column in comparison.columns)


def test_typing_in_the_recipe_forgets_no_talk(session: Session) -> None:
    panel = try_it()
    log = next(widget for widget in below(panel) if "lazymoe-log" in widget._dom_classes)
    box = next(widget for widget in below(panel) if "lazymoe-chat-message" in widget._dom_classes)
    enter(box, "The name")
    assert "Mixture:" in log.value
    session.change(yaml=session.yaml + "\n")
    assert "Mixture:" in log.value
    session.change(name="another")
    assert "Mixture:" not in log.value


def below(panel: Any) -> list[Any]:
    return [panel, *(widget for child in getattr(panel, "children", ()) for widget in below(child))]
