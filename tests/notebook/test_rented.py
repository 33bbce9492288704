"""GGUF and evaluations on a rented machine, by the panels without a front end: their price, found again, stopped."""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets as w
import pytest
from hub_server import Hub
from jobs_server import Jobs

from lazymoe import Recipe, Texts, merge, merge_to_hub
from lazymoe.demonstration.models import domains
from lazymoe.hub.accounts import Account
from lazymoe.notebook.evaluate_panel import Evaluate
from lazymoe.notebook.gguf_panel import Gguf
from lazymoe.notebook.merge_panel import Merge
from lazymoe.notebook.publish_panel import Publish
from lazymoe.notebook.session import SESSION

Panel = Evaluate | Gguf
PRICE, AGAIN = "costs $0.01 an hour, billed to writer", "once more to rent it"


@pytest.fixture
def jobs(clean_hub: Hub) -> Iterator[Jobs]:
    with Jobs(clean_hub) as jobs:
        jobs.hold.clear()
        yield jobs


@pytest.fixture
def given(clean_hub: Hub, demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The notebook's recipe, in a folder of its own: two experts on the Hub."""
    monkeypatch.chdir(tmp_path)
    names = [f"acme/{tmp_path.name.strip('_.-')}-{kind.name}" for kind in domains()[:2]]
    for name, kind in zip(names, domains(), strict=False):
        clean_hub.add(name, demo_models / kind.name)
    experts = [{"source_model": name} for name in names]
    recipe = Recipe.model_validate({"base_model": names[0], "gate_mode": "random", "experts": experts})
    opened(recipe.to_yaml())
    return recipe


def opened(yaml: str | None = None) -> None:
    """A notebook that is opened in this folder, with a token."""
    SESSION.__init__()  # type: ignore[misc]
    SESSION.account = Account("writer", (), ("writer",))
    SESSION.change(yaml=yaml)


def gguf() -> Gguf:
    panel = Gguf(w.Text())
    SESSION.listen("publish", panel.hear)
    return panel


PANELS: dict[str, Callable[[], Panel]] = {"gguf": gguf, "evaluate": Evaluate}


def fields(panel: Panel) -> dict[str, Any]:
    return {name: field.value for name, field in panel.rented._form.items()}


def press(panel: Panel, then: Callable[[], None] | None = None) -> str:
    """Press the panel's button, do something when its job is there, and give what the panel says."""

    def act() -> None:
        while "Stop ends it" not in panel.rented._log.value:
            time.sleep(0.02)
        if then:
            then()

    if then:
        threading.Thread(target=act, daemon=True).start()
    panel.work._start.click()
    return html.unescape(panel.told.value)


@pytest.fixture(params=PANELS)
def panel(request: pytest.FixtureRequest, given: Recipe, jobs: Jobs, untraced: None, tmp_path: Path) -> Panel:
    """A panel in which a rented machine is chosen for something."""
    panel = PANELS[request.param]()
    panel.elsewhere._choice.value = True
    form: dict[str, Any] = panel.rented._form  # type: ignore[assignment]
    if isinstance(panel, Evaluate):
        merge_to_hub(given, "writer/moe", tmp_path / "work")
        SESSION.change(sent="writer/moe")
        (tmp_path / "mine.jsonl").write_text('{"question": "What is 1?", "choices": ["One", "Two"], "answer": 0}\n')
        form["suite"].value, form["own"].value, form["limit"].value = "own", "mine.jsonl", 7
    else:
        form["repo"].value, form["Q8_0"].value, form["private"].value = "writer/mine-GGUF", True, True
    return panel


def test_a_second_press_starts_and_a_new_notebook_finds_it_again(
    panel: Panel, jobs: Jobs, request: pytest.FixtureRequest
) -> None:
    said = press(panel)
    assert PRICE in said and AGAIN in said and not jobs.jobs
    said = press(panel, panel.work.stop)
    assert "A job that runs goes on" in said and [job.stage for job in jobs.jobs.values()] == ["SCHEDULING"]

    opened()
    again = PANELS[request.node.callspec.params["panel"]]()
    assert again.elsewhere.chosen and fields(again) == fields(panel)
    said = press(again, again.work._press)
    assert "The job has ended." in said and [job.stage for job in jobs.jobs.values()] == ["CANCELED"]
    assert PRICE in press(again)  # a yes was for one machine
    again.elsewhere._choice.value = False
    assert (
        "Waiting for step 4" in again.told.value
        and not json.loads(Path(".lazymoe-notebook.json").read_text())["rented"]
    )


def test_a_job_that_does_something_else_is_stopped_if_that_is_wanted(panel: Panel, jobs: Jobs) -> None:
    press(panel)
    press(panel, panel.work.stop)
    field = panel.rented._form["limit" if isinstance(panel, Evaluate) else "Q4_K_M"]
    field.value = 8 if isinstance(panel, Evaluate) else False  # type: ignore[attr-defined]
    said = press(panel)
    [job] = jobs.jobs.values()
    assert "a job does something else for it" in said and "once more to stop it" in said and not job.ended
    assert PRICE in press(panel) and job.stage == "CANCELED"


def test_a_machine_is_named(panel: Panel, jobs: Jobs) -> None:
    panel.elsewhere.machine.value = "t4-smal"
    assert "there is no machine 't4-smal'. Did you mean 't4-small'?" in press(panel)
    panel.elsewhere.machine.value = "t4-small"
    assert "t4-small of Hugging Face Jobs" in press(panel) and not jobs.jobs


def test_an_evaluation_wants_a_mixture_on_the_hub(given: Recipe, jobs: Jobs, clean_hub: Hub, untraced: None) -> None:
    """What isn't there, or is none, is told with what to do; so before a token, and before anything went there."""
    SESSION.account = None
    panel = Evaluate()
    assert panel.repo.layout.display == "none"
    panel.elsewhere._choice.value = True
    assert panel.repo.layout.display is None
    assert "Waiting for a token" in panel.told.value and "publish it in step 7" in panel.told.value
    SESSION.account = Account("writer", (), ("writer",))
    SESSION.change()
    assert "press Evaluate. You are told the price first." in panel.told.value
    for name, why in (("", "on the Hub"), ("writer/none", "no model on the Hub"), (given.base_model, "no mixture")):
        panel.repo.value = name
        said = press(panel)
        assert why in said and "publish it in step 7" in said and not jobs.jobs


def test_what_the_form_shows_belongs_to_the_machine_that_is_chosen(given: Recipe, jobs: Jobs) -> None:
    """GGUF of the recipe in the form takes no mixture here."""
    panel = gguf()
    assert "Waiting for step 4" in panel.told.value and panel.work._start.disabled
    panel.elsewhere._choice.value = True
    assert "It makes the recipe of step 2" in panel.told.value and not panel.work._start.disabled
    SESSION.change(yaml="base_model: ")
    assert "Waiting for a recipe" in panel.told.value and panel.work._start.disabled


def test_texts_that_go_along_are_told(given: Recipe, jobs: Jobs) -> None:
    """Before each way onto the Hub."""
    Path("own.txt").write_text("A text.")
    every = [expert.model_copy(update={"positive_prompts": [Texts(file="own.txt")]}) for expert in given.experts]
    SESSION.change(yaml=given.with_experts(every).to_yaml(), place="here")
    said = "The texts of {} go along"
    merging, panel = Merge(), gguf()
    panel.elsewhere._choice.value = True
    assert said.format("own.txt") not in merging.destination._told.value
    assert said.format("own.txt") in panel.told.value
    SESSION.change(place="hub")
    assert said.format("own.txt") in merging.destination._told.value
    assert SESSION.recipe
    merge(SESSION.recipe, SESSION.out)
    assert said.format("prompts-1.jsonl") in Publish().doubts.value
