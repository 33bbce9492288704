"""The notebook's panels without a front end: a recipe, a mistake, an interrupt, a restarted kernel."""

from __future__ import annotations

import base64
import html
import importlib
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
import pytest
import yaml
from hub_server import Hub
from small_models import Make, recipe

from lazymoe import Recipe
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe
from lazymoe.hub.accounts import Account
from lazymoe.merging import merge as merge_recipe
from lazymoe.notebook import check as check_panel
from lazymoe.notebook import merge as merge_panel
from lazymoe.notebook.chat import Chat
from lazymoe.notebook.gguf_panel import Gguf
from lazymoe.notebook.recipe_panel import Form
from lazymoe.notebook.session import SESSION, Session
from lazymoe.notebook.setup_panel import _sizes
from lazymoe.notebook.ui import Bars, Messages
from lazymoe.notebook.work import Steps, Work
from lazymoe.output.claims import claim, locked
from lazymoe.planning.prepared import prepare
from lazymoe.units import gigabytes


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The notebook's state, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    SESSION.__init__()  # type: ignore[misc]
    return SESSION


def demo_yaml(models: Path, gate_mode: str = "fit") -> str:
    return demo_recipe(models, domains(), gate_mode).to_yaml()


def button_of(panel: Any, name: str) -> Any:
    """The widget below a panel that has this class of ours."""
    found = [panel] if f"lazymoe-{name}" in panel._dom_classes else []
    for child in getattr(panel, "children", ()):
        found += [button_of(child, name)]
    return next((widget for widget in found if widget is not None), None)


def test_form_and_yaml_follow_each_other(session: Session, demo_models: Path) -> None:
    form = Form()
    form.text.value = demo_yaml(demo_models)
    assert session.recipe == demo_recipe(demo_models, domains(), "fit")
    assert [row.model.value for row in form.rows] == [e.source_model for e in session.recipe.experts]
    form.top_k.value = 3
    form.gate.value = "hidden"
    form.dtype.value = "float16"
    form.rows[0].residual.value = "0.5"
    form.rows[1].negative.value = "no\nnever"
    form.name.value = "other"
    expected = yaml.safe_load(form.text.value)
    assert expected["experts_per_token"] == 3 and expected["gate_mode"] == "hidden" and expected["dtype"] == "float16"
    assert expected["experts"][0]["residual_scale"] == 0.5
    assert expected["experts"][1]["negative_prompts"] == ["no", "never"]
    assert Recipe.from_yaml(form.text.value) == session.recipe
    assert session.name == "other"


def test_form_keeps_what_it_does_not_show(session: Session) -> None:
    text = (
        "base_model: a/b\nshared_weights: average\nexperts:\n"
        "- {source_model: a/c, positive_prompts: [one, {file: x.txt, limit: 3}]}\n"
    )
    form = Form()
    form.text.value = text
    form.top_k.value = 1
    kept = yaml.safe_load(form.text.value)
    assert kept["shared_weights"] == "average"
    assert kept["experts"][0]["positive_prompts"] == ["one", {"file": "x.txt", "limit": 3}]


def test_the_form_says_what_correcting_costs_and_writes_it(session: Session) -> None:
    form = Form()
    form.text.value = "base_model: a/b\nexperts: [{source_model: a/c, positive_prompts: [one]}]"
    assert "as they are" in form.weighed.value and "expert_weights" not in form.text.value
    form.weights.value = "corrected"
    assert yaml.safe_load(form.text.value)["expert_weights"] == session.recipe.expert_weights == "corrected"
    assert "A third of each expert's weights is computed" in html.unescape(form.weighed.value)
    assert "slightly worse on all others" in form.weighed.value
    form.text.value = form.text.value.replace("corrected", "own")
    assert form.weights.value == "own"


def test_a_recipe_can_be_uploaded_and_downloaded(session: Session) -> None:
    text = "base_model: a/b\nexperts: [{source_model: a/c, positive_prompts: [äöü]}]\n"
    form = Form()
    form.upload.value = ({"name": "r.yaml", "type": "", "size": 1, "content": memoryview(text.encode()),
                          "last_modified": datetime.now()},)  # fmt: skip
    assert form.base.value == "a/b" and form.rows[0].positive.value == "äöü"
    link = form.link.value
    assert base64.b64decode(link.partition("base64,")[2].partition('"')[0]).decode() == form.text.value == text


def test_form_moves_experts(session: Session) -> None:
    form = Form()
    form.text.value = "base_model: a/b\nexperts: [{source_model: a/1}, {source_model: a/2}, {source_model: a/3}]"
    for act, row, order in (("down", 0, "213"), ("up", 2, "231"), ("remove", 1, "21"), ("up", 0, "21")):
        button_of(form.rows[row].box, act).click()
        assert "".join(e["source_model"][-1] for e in yaml.safe_load(form.text.value)["experts"]) == order


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("base_model: ''\nexperts: [{source_model: a/b}]", "base_model", "this is empty"),
        ("base_model: no/such/folder\nexperts: [{source_model: a/b}]", "base_model", "there is no folder"),
        ("base_model: a/b\nexperts: []", "experts", "no expert"),
        ("base_model: a/b\nexperts: [{source_model: a/b, noise_scale: -1}]", (0, "noise_scale"), "greater"),
        ("base_model: a/b\nexperts: [{source_model: ''}]", (0, "source_model"), "this is empty"),
        ("base_model: a/b\nexperts: [{source_model: a/b}]\ndtyp: 1", None, "no field 'dtyp'"),
        ("base_model: a/b\nexperts: [{source_model: a/b}]\ngate_mode: [fit]", "gate_mode", "one of"),
        ("base_model: a/b\nexperts: [{source_model: a/b}]\nexpert_weights: {a: b}", "expert_weights", "own, corrected"),
        ("base_model: [", None, "valid YAML"),
    ],
)
def test_mistakes_are_marked_beside_their_field(session: Session, text: str, place: Any, words: str) -> None:
    form = Form()
    form.text.value = text
    shown = {key: message.value for key, message in form.messages.items()}
    shown |= {(i, key): message.value for i, row in enumerate(form.rows) for key, message in row.messages.items()}
    shown[None] = form.told.value
    assert words in html.unescape(shown.pop(place))
    assert "lazymoe-error" not in "".join(v for k, v in shown.items() if k != (0, "positive_prompts"))


def test_a_restarted_kernel_finds_everything_again(session: Session, demo_models: Path) -> None:
    form = Form()
    form.text.value = demo_yaml(demo_models, "random")
    form.name.value = "found-again"
    merge_recipe(session.recipe, session.out)
    again = Session()
    assert (again.yaml, again.name, again.merged) == (session.yaml, "found-again", session.out)


def test_nothing_is_red_before_the_first_key(session: Session) -> None:
    form = Form()
    assert "lazymoe-error" not in form.told.value + form.messages["base_model"].value + form.beside.value
    assert form.welcome.layout.display is None
    form.base.value = "a/b"
    assert "this is empty" in form.rows[0].messages["source_model"].value and "this is empty" in form.beside.value
    assert form.welcome.layout.display == "none"


def test_a_recipe_that_has_moved_on_makes_its_mixture_an_older_one(session: Session, demo_models: Path) -> None:
    form = Form()
    form.text.value = demo_yaml(demo_models, "random")
    merge_recipe(session.recipe, session.out)
    session.finish("my-moe", session.yaml, ["a doubt"])
    assert not session.is_older
    form.top_k.value = 3
    assert session.is_older and session.free_name == "my-moe-2"
    again = Session()  # after a restart
    assert again.is_older and again.made["my-moe"][1] == ["a doubt"]
    session.change(name="my-moe-2")
    assert not session.is_older and form.name.value == "my-moe-2"
    (session.out.parent / "my-moe-2").mkdir()
    assert session.free_name == "my-moe-3"


def test_a_free_colab_is_told_what_it_can_make() -> None:
    made = dict(re.findall(r"<tr><td>([^<]*)</td><td>[^<]*</td><td>([^<]*)<", _sizes(75 * 10**9, 12 * 10**9, 0)))
    assert made["2 x Mistral-7B"] == "✓ yes"
    assert made["4 x Mistral-7B"] == "✓ yes, while its models stay on the Hub"
    assert made["8 x Mistral-7B"] == "✓ yes, straight to the Hub, while its models stay there"
    assert "no disk" in _sizes(10**9, 12 * 10**9, 0) and "no memory" in _sizes(75 * 10**9, 10**9, 0)


def test_a_way_is_chosen_with_one_click(session: Session, hub: Hub, demo_models: Path) -> None:
    """In the check's list or beside Merge, each shows what was chosen in the other; and it is kept."""
    models = [f"acme/way-{i}" for i in range(2)]
    for name, domain in zip(models, domains(), strict=False):
        hub.add(name, demo_models / domain.name)
    experts = [{"source_model": name} for name in models]
    recipe = Recipe.model_validate({"base_model": models[0], "gate_mode": "random", "experts": experts})
    session.change(yaml=recipe.to_yaml())
    checked, merged = check_panel(), merge_panel()
    source, place = (button_of(merged, name) for name in ("source", "way"))
    listed = checked.children[-1]
    assert not listed.children
    button_of(checked, "check-button").click()

    def chosen() -> list[bool]:
        return ["lazymoe-chosen" in row._dom_classes for row in listed.children]

    def told() -> str:
        parts = [*checked.children, *merged.children]
        return html.unescape("".join(part.value for part in parts if isinstance(part, Messages)))

    titles = [row.children[1].value.partition("</b>")[0].removeprefix("<b>") for row in listed.children]
    assert titles == [
        "Download the models, merge into a folder here",
        "Read the models where they are, merge into a folder here",
        "Download the models, merge straight to the Hub",
        "Read the models where they are, merge straight to the Hub",
    ]
    assert chosen() == [True, False, False, False] and (source.value, place.value) == ("auto", "here")
    assert "This can be merged." in told() and "To download: " in told()
    listed.children[3].children[0].click()
    assert chosen() == [False, False, False, True] and (source.value, place.value) == ("remote", "hub")
    assert "This can be merged straight to the Hub, while its models stay there." in told()
    assert "To read on the Hub: " in told() and "to upload: " in told()
    place.value = "here"
    assert chosen() == [False, True, False, False] and "This can be merged while its models stay on the Hub." in told()
    again = Session()
    assert (again.source, again.place) == ("remote", "here")
    assert session.found
    full = tuple(replace(way, needs=(way.needs[0]._replace(free=0),)) for way in session.found.ways)
    session.checked = session.yaml, replace(session.found, ways=(*full[:3], session.found.ways[3]))
    session.change()
    assert chosen() == [False] * 4 and told().count("This doesn't fit in the way that is chosen.") == 2
    assert [row.children[0].disabled for row in listed.children] == [True, True, True, False]


def test_an_interrupted_merge_goes_on(session: Session, demo_models: Path, tmp_path: Path, untraced: None) -> None:
    """The kernel's interrupt stops the merge cleanly; the same button goes on, and the bytes are the same."""
    session.change(yaml=demo_yaml(demo_models), name="stopped")
    panel = merge_panel()

    def interrupt() -> None:
        while not (tmp_path / "stopped" / ".lazymoe").exists():
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    button_of(panel, "merge-button").click()
    told = "".join(child.value for child in panel.children if isinstance(child, Messages))
    assert "Stopped. Press Merge to go on from here." in told
    assert session.merged is None
    button_of(panel, "merge-button").click()
    assert session.merged
    merge_recipe(session.recipe, tmp_path / "whole")
    weights = "model-00001-of-00001.safetensors"
    assert (tmp_path / "stopped" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_a_folder_takes_one_merge_at_a_time(session: Session, demo_models: Path) -> None:
    session.change(yaml=demo_yaml(demo_models, "random"), name="busy")
    assert session.recipe
    plan = prepare(session.recipe).sound_plan
    panel = merge_panel()
    with locked(claim(session.out, plan.fingerprint(recipe=session.recipe.model_dump(), seed=0), plan)):
        button_of(panel, "merge-button").click()
    told = "".join(child.value for child in panel.children if isinstance(child, Messages))
    assert "another process is at work in this folder" in told
    button_of(panel, "merge-button").click()
    assert session.merged


def test_a_stopped_answer_goes_on(session: Session, demo_models: Path, untraced: None) -> None:
    session.change(yaml=demo_yaml(demo_models, "random"), name="to-chat")
    merge_recipe(session.recipe, session.out)
    chat = Chat()
    send, said = button_of(chat.box, "chat-send"), chat._said

    def stopped_at_ten(text: str) -> None:
        said(text)
        if len(chat.messages[-1]["content"]) > 10:
            chat.work.stop()

    chat.question.value, chat._said = "The name of the object", stopped_at_ten  # type: ignore[method-assign]
    send.click()
    begun = chat.messages[-1]["content"]
    assert "Stopped. Press Send to go on." in chat.told.value and len(begun) > 10
    chat._said = said  # type: ignore[method-assign]
    send.click()
    answer = chat.messages[-1]["content"]
    assert len(chat.messages) == 2 and answer.startswith(begun) and len(answer) > len(begun)
    send.click()
    assert "Type a message." in chat.told.value


def test_ticked_types_are_published_as_gguf(
    session: Session, clean_hub: Hub, demo_models: Path, untraced: None
) -> None:
    merge_recipe(demo_recipe(demo_models, domains(), "random"), session.out)
    session.account = Account("writer", (), ("writer",))
    panel = Gguf(w.Text("mit"))
    panel.hear()
    assert {kind for kind, tick in panel.types.items() if tick.value} == {"Q4_K_M"}
    assert "a lot (not measured)" in panel.figures["Q2_K"].value and "4 GB" in panel.figures["Q2_K"].value
    panel.types["Q8_0"].value = True
    button_of(panel, "gguf-button").click()
    assert "It is on the Hub" in panel.told.value, panel.told.value
    repo = clean_hub.repos["writer/my-moe-GGUF"].commits[-1].files
    assert {"my-moe-Q8_0.gguf", "my-moe-Q4_K_M.gguf", "README.md"} <= set(repo)
    assert b"license: mit" in clean_hub.read("writer/my-moe-GGUF", "README.md")
    shown = panel.figures["Q8_0"].value.partition(" GB")[0].partition(" MB")[0]
    assert gigabytes((session.out.with_name("my-moe-GGUF") / "my-moe-Q8_0.gguf").stat().st_size).startswith(shown[:3])


def test_without_types_or_such_a_model_there_is_no_gguf(session: Session, make: Make, demo_models: Path) -> None:
    panel = Gguf(w.Text())
    panel.hear()
    assert "Waiting for step 4" in panel.told.value and button_of(panel, "gguf-button").disabled
    models = [make(f"model-{i}", seed=i, kind="olmo2") for i in range(3)]
    merge_recipe(recipe(*models), session.out)
    session.account = Account("writer", (), ("writer",))
    panel.hear()
    assert "llama.cpp doesn&#x27;t compute flex_olmo" in panel.told.value
    assert button_of(panel, "gguf-button").disabled


def test_stages_that_go_on_together_are_drawn_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is told of right after another is drawn all the same; none is done before its end."""
    now = [0.0]
    monkeypatch.setattr("lazymoe.notebook.ui.time.monotonic", lambda: now[0])
    bars = Bars()
    for done in range(20, 100):
        now[0] += 0.11
        for stage in ("download", "write", "upload"):
            now[0] += 0.001
            bars(stage, done * 10**7, 10**9)
    for row in bars.children:
        bar, text = row.children
        assert bar.value == 0.99 and not bar.bar_style
        assert text.value == "1.0 GB of 1.0 GB, 88.5 MB/s, 0:00 left"
    assert [row.children[0].description for row in bars.children] == ["Downloading", "Writing", "Uploading"]
    bars("write", 10**9, 10**9)
    assert [row.children[0].bar_style for row in bars.children] == ["", "success", ""]


def steps_of(*functions: Callable[[], Any]) -> Steps:
    yield from functions


@pytest.fixture
def work(untraced: None) -> Work:
    return Work(w.Button(), "test", Messages(), "Again.")


def stop_later(work: Work) -> None:
    """Stop it a moment after it has begun, however long that takes to begin."""

    def stop() -> None:
        while not work.goes_on:
            time.sleep(0.01)
        time.sleep(0.3)
        work.stop()

    threading.Thread(target=stop, daemon=True).start()


def test_work_gives_results_and_exceptions_back(work: Work) -> None:
    results = []

    def steps() -> Steps:
        results.append((yield partial(int, "7")))
        try:
            yield partial(int, "seven")
        except ValueError:
            results.append((yield partial(int, "8")))
        yield partial(int, "nine")

    work.begin(steps())
    assert results == [7, 8]
    assert not work.goes_on and "ValueError" in work._told.value


def test_work_begins_once(work: Work) -> None:
    """A second click, heard while the first is at work, begins nothing."""
    began: list[int] = []
    work.begin(steps_of(lambda: work.begin(steps_of(lambda: began.append(2))), lambda: began.append(1)))
    assert began == [1]


def test_a_stop_waits_for_no_single_operation_but_the_next_start_does(work: Work) -> None:
    told: list[str] = []
    operation = threading.Lock()  # to acquire it is one operation, which no interrupt reaches
    operation.acquire()
    stop_later(work)
    work.begin(steps_of(operation.acquire, lambda: told.append("went on")))
    assert "Stopped. Again." in work._told.value

    def end() -> None:
        told.append("ended")
        operation.release()

    threading.Timer(0.5, end).start()
    work.begin(steps_of(lambda: told.append("anew")))
    assert told == ["ended", "anew"]


def test_a_stop_cuts_no_import_short(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import time\nbegan = time.monotonic()\nwhile time.monotonic() < began + 1: pass\nwhole = True\n"
    (tmp_path / "slowly_imported.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ended: list[str] = []
    stop_later(work)
    work.begin(steps_of(partial(importlib.import_module, "slowly_imported"), lambda: ended.append("went on")))
    assert "Stopped. Again." in work._told.value and not ended
    assert importlib.import_module("slowly_imported").whole


def test_a_stop_reaches_the_threads_of_a_step(work: Work) -> None:
    """Those of a download hear of it when they tell how far they are."""
    heard: list[bool] = []

    def download() -> None:
        try:
            while True:
                work.progress("write", 1, 2)
                time.sleep(0.01)
        except KeyboardInterrupt:
            heard.append(True)

    def step() -> None:
        thread = threading.Thread(target=download)
        thread.start()
        thread.join()

    stop_later(work)
    work.begin(steps_of(step))
    assert heard and "Stopped. Again." in work._told.value
