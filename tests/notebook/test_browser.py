"""The notebook in real front ends: every cell runs, and a browser goes the whole way from Run All to a published model.

pytest tests/notebook/test_browser.py --screenshots docs          # also keep the pictures
pytest tests/notebook/test_browser.py --colab PYTHON              # also Colab's generation of Jupyter
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from hub_server import Hub, User
from jobs_server import Jobs
from lab import NOTEBOOK, PANELS, TOKEN, Lab, Open
from nbclient import NotebookClient
from newcomer import make_newcomer
from playwright.sync_api import expect
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lazymoe.demonstration.models import MODEL, domains, save
from lazymoe.demonstration.story import demo_recipe
from lazymoe.merging import merge
from lazymoe.notebook.recipe_panel import DEMO
from lazymoe.notebook.session import FILE
from lazymoe.recipe.schema import Recipe
from lazymoe.to_hub import merge_to_hub


@pytest.fixture
def known_token(hub: Hub) -> Iterator[str]:
    hub.tokens[TOKEN] = User("newcomer", "write")
    yield TOKEN
    del hub.tokens[TOKEN]


def test_the_committed_notebook_is_clean() -> None:
    """No outputs, no widget state, and a form of one import and one call in each cell but the first."""
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == len(PANELS)
    for cell in cells:
        assert not cell.outputs and cell.execution_count is None
        assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
        assert cell.source.startswith("# @title ")
    for cell in cells[1:]:
        lines = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
        assert len(lines) == 2 and lines[0].startswith("from lazymoe.notebook import ")


def test_every_cell_runs(tmp_path: Path, hub: Hub) -> None:
    """Run All on a fresh runtime ends without an error, and each cell shows a panel."""
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert "application/vnd.jupyter.widget-view+json" in cell.outputs[-1].data


def everything_below(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def leaks(token: str, *folders: Path) -> list[str]:
    """The files and the running programs' arguments that hold a token, as it is or as JSON, base64 or URL have it."""
    bare = token.removeprefix("hf_")
    spellings = [bare.encode(), base64.b64encode(token.encode()).rstrip(b"="), bare.encode("utf-16-le")]
    found = [str(path) for path, data in everything_below(*folders) if any(s in data for s in spellings)]
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [str(arguments)] * (bare.encode() in arguments.read_bytes())
    return found


def test_a_newcomer_publishes_the_demo(
    open_lab: Open, known_token: str, hub: Hub, request: pytest.FixtureRequest
) -> None:
    """From opening the notebook to a published model: six clicks at most, and nothing typed but the token."""
    with open_lab(height=2400) as lab:
        lab.run_all()
        lab.shoot(request, "recipe", "empty")
        lab.shoot(request, "merge", "waiting")
        lab.type_token(known_token)
        expect(lab.at("merge-button")).to_be_disabled()
        lab.choose("menu", DEMO)
        lab.told("check", "note", "Press Check", 60)
        lab.click(lab.at("merge-button"))
        lab.told("merge", "good", "my-moe is ready", 90)
        lab.told("merge", "good", "of what the experts gain over the base model is recovered")
        lab.click(lab.at("publish-button"))
        lab.told("publish", "good", "It is on the Hub", 60)
        expect(lab.at("link").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/my-moe")
        assert lab.clicks <= 6
        lab.at("type-q8_0").locator("input").click()  # beside the type that is ticked
        lab.at("gguf-button").click()
        lab.told("gguf", "good", "It is on the Hub", 60)
        expect(lab.at("gguf").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/my-moe-GGUF")
        assert {"my-moe-Q4_K_M.gguf", "my-moe-Q8_0.gguf"} <= hub.repos["newcomer/my-moe-GGUF"].commits[-1].files.keys()
        lab.at("check-button").click()
        lab.told("check", "good", "This can be merged")

        text = "def add(first, second): return first + second  The sum is returned if both of them are numbers."
        lab.at("try-text").locator("textarea").fill(text)
        lab.at("route-button").click()
        expect(lab.at("token-of-text").nth(6)).to_be_visible(timeout=30_000)
        for panel in PANELS:
            lab.shoot(request, panel, "done")
        lab.at("publish").get_by_text("Preview of the model card").click()
        expect(lab.at("publish").get_by_role("heading", name="Experts")).to_be_visible()
        expect(lab.at("publish").get_by_role("img")).to_be_visible()
        lab.at("chat-message").locator("input").fill("What is a statement?")
        lab.at("chat-send").click()
        expect(lab.at("try").get_by_text("Mixture:")).to_be_visible(timeout=60_000)
        assert not lab.errors


def test_the_whole_way(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, tmp_path: Path
) -> None:
    """A recipe with a mistake, mended, checked, merged, tried, published, and loaded from the Hub; and the token, typed
    on the way, is nowhere."""
    with open_lab(python=python) as lab:
        lab.run_all()
        lab.told("merge", "note", "Waiting")
        lab.told("publish", "note", "Waiting")
        lab.choose("menu", DEMO)
        expect(lab.at("expert")).to_have_count(4, timeout=60_000)
        lab.at("add-expert").click()
        expect(lab.at("expert")).to_have_count(5)
        added = lab.at("expert").nth(4)
        expect(added.locator(".lazymoe-error")).to_contain_text("this is empty")
        lab.told("check", "note", "Waiting")
        added.locator(".lazymoe-expert-model input").fill(str(demo_models / "english"))
        added.locator(".lazymoe-positive textarea").fill("A list is changed in place.\nThis is returned.")
        expect(added.locator(".lazymoe-error")).to_have_count(0)
        added.locator(".lazymoe-remove").click()
        expect(lab.at("expert")).to_have_count(4)
        lab.at("name").locator("input").fill("whole-way")
        lab.told("merge", "note", "whole-way")

        lab.at("check-button").click()
        lab.told("check", "good", "This can be merged")
        lab.at("merge-button").click()
        lab.told("merge", "good", "whole-way is ready", 90)
        assert lab.at("bar-write").locator(".progress-bar").evaluate("e => e.style.width") == "100%"
        lab.at("try-text").locator("textarea").fill("import os")
        lab.at("route-button").click()
        expect(lab.at("token-of-text").nth(4)).to_be_visible(timeout=30_000)

        lab.type_token(known_token)
        expect(lab.at("token").locator("input")).to_have_value("")
        lab.at("publish-button").click()
        lab.told("publish", "good", "It is on the Hub", 60)
        lab.save()
        assert not leaks(known_token, tmp_path)
        assert not lab.errors
    assert not leaks(known_token, tmp_path)

    published = AutoModelForCausalLM.from_pretrained("newcomer/whole-way", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "whole-way", dtype=torch.float32)
    for (name, one), other in zip(published.state_dict().items(), merged.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    card = hub.read("newcomer/whole-way", "README.md").decode()
    assert "](routing.png)" in card and hub.read("newcomer/whole-way", "routing.png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_search_for_the_token_can_fail(open_lab: Open, known_token: str, tmp_path: Path) -> None:
    """With the wiping of the box switched off, the saved notebook holds the token, and the search finds it there."""
    keep = (
        "import ipywidgets\n"
        "ipywidgets.Password.__setattr__ = lambda self, name, value: (\n"
        "    None if (name, value) == ('value', '') else object.__setattr__(self, name, value))"
    )
    with open_lab(first_cell=keep) as lab:
        lab.run_all()
        lab.type_token(known_token)
        lab.save()
        assert str(tmp_path / "work" / NOTEBOOK.name) in leaks(known_token, tmp_path)


@pytest.mark.slow
def test_panels_know_their_state(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, request: pytest.FixtureRequest
) -> None:
    """Private sources by the token of step 1; published twice; a recipe that moves on after its merge; a restart."""
    kinds = domains()[:2]
    for name in ("base", *(kind.name for kind in kinds)):
        hub.add(f"newcomer/private-{name}", demo_models / name, private=True)
    experts = [{"source_model": f"newcomer/private-{k.name}", "positive_prompts": list(k.prompts)} for k in kinds]
    recipe = Recipe.model_validate({"base_model": "newcomer/private-base", "gate_mode": "fit", "experts": experts})
    session = {"yaml": recipe.to_yaml(), "name": "mine", "made": {}}
    with open_lab(python=python, session=session, height=2400) as lab:
        lab.run_all()
        lab.at("check-button").click()
        lab.told("check", "error", "by a token in step 1")
        lab.shoot(request, "check", "failed")
        lab.type_token(known_token)
        lab.at("check-button").click()
        lab.told("check", "good", "This can be merged")
        lab.told("merge", "note", "To download:")
        lab.at("merge-button").click()
        lab.told("merge", "good", "mine is ready", 60)
        lab.at("publish-button").click()
        lab.told("publish", "good", "It is on the Hub", 60)
        lab.at("publish-button").click()
        lab.told("publish", "good", "nothing changed", 60)

        lab.at("gate-mode").locator("select").select_option("hidden")
        lab.told("merge", "warning", "an older recipe")
        lab.told("publish", "warning", "an older recipe")
        lab.told("try", "warning", "an older recipe")
        lab.shoot(request, "merge", "stale")
        lab.at("merge-button").click()
        lab.told("merge", "good", "mine-2 is ready", 60)
        expect(lab.at("name").locator("input")).to_have_value("mine-2")
        expect(lab.at("link").locator("a")).to_have_count(0)
        assert (lab.folder / "mine" / "config.json").is_file()
        assert not lab.errors
    session = json.loads((lab.folder / FILE).read_text())
    with open_lab(python=python, session=session, height=2400) as lab:  # as after a restart
        lab.run_all()
        lab.told("merge", "good", "mine-2 is ready")
        expect(lab.at("name").locator("input")).to_have_value("mine-2")


@pytest.mark.slow
def test_models_are_read_where_they_are(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """One click on one of the ways that the check has found; from Hub to Hub, with no model in the cache."""
    kinds = domains()[:2]
    for name in ("base", *(kind.name for kind in kinds)):
        hub.add(f"acme/stays-{name}", demo_models / name)
    experts = [{"source_model": f"acme/stays-{k.name}", "positive_prompts": list(k.prompts)} for k in kinds]
    recipe = Recipe.model_validate({"base_model": "acme/stays-base", "gate_mode": "fit", "experts": experts})
    with open_lab(python=python, session={"yaml": recipe.to_yaml(), "name": "stays", "made": {}}, height=2400) as lab:
        lab.run_all()
        lab.at("check-button").click()
        lab.told("check", "good", "This can be merged.")
        expect(lab.at("one-way")).to_have_count(4)
        expect(lab.at("chosen")).to_contain_text("Download the models, merge into a folder here")
        lab.shoot(request, "check", "ways")
        lab.at("source").get_by_text("Read them where they are").click()
        expect(lab.at("chosen")).to_contain_text("Read the models where they are, merge into a folder here")
        lab.told("merge", "note", "To read on the Hub: ")
        lab.at("one-way").nth(3).get_by_role("button").click()
        expect(lab.at("chosen")).to_contain_text("Read the models where they are, merge straight to the Hub")
        expect(lab.at("way").get_by_label("Straight to the Hub")).to_be_checked()
        lab.type_token(known_token)
        lab.shoot(request, "merge", "ways")
        lab.at("merge-button").click()
        lab.told("merge", "good", "It is on the Hub", 90)
        expect(lab.at("merge").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/stays")
        inside = lab.at("check").first.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
        assert inside and not lab.errors
    assert "config.json" in hub.repos["newcomer/stays"].commits[-1].files
    assert not list((tmp_path / "HF_HOME").rglob("*.safetensors")) and not (tmp_path / "work" / "stays").exists()


def test_a_mixture_goes_straight_to_the_hub(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, request: pytest.FixtureRequest
) -> None:
    """With a token, and without a folder that holds it; what it takes is said before."""
    recipe = demo_recipe(demo_models, domains(), "fit")
    with open_lab(python=python, session={"yaml": recipe.to_yaml(), "name": "straight"}, height=2400) as lab:
        lab.run_all()
        lab.at("way").get_by_text("Straight to the Hub").click()
        lab.told("merge", "note", "Waiting for a token")
        expect(lab.at("merge-button")).to_be_disabled()
        lab.type_token(known_token)
        expect(lab.at("straight-repo").locator("input")).to_have_value("newcomer/straight")
        lab.at("check-button").click()
        lab.told("merge", "note", "to upload: ")
        lab.at("merge-button").click()
        lab.told("merge", "good", "It is on the Hub", 90)
        expect(lab.at("merge").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/straight")
        lab.told("publish", "note", "Waiting")
        lab.shoot(request, "merge", "straight")
        lab.at("top-k").locator("input").fill("3")
        lab.page.keyboard.press("Tab")
        expect(lab.at("merge").locator("a")).to_have_count(0)
        assert not lab.errors and not (lab.folder / "straight").exists()
    published = AutoModelForCausalLM.from_pretrained("newcomer/straight")
    assert published.num_parameters() == json.loads(hub.read("newcomer/straight", "lazymoe.json"))["parameters"]


@pytest.mark.slow
def test_a_mixture_is_made_on_a_rented_machine(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, request: pytest.FixtureRequest
) -> None:
    """The price comes first, then a yes; found again by a new kernel, stopped, and started anew."""
    kinds = domains()[:2]
    for name in ("base", *(kind.name for kind in kinds)):
        hub.add(f"acme/rented-{name}", demo_models / name)
    experts = [{"source_model": f"acme/rented-{k.name}", "positive_prompts": list(k.prompts)} for k in kinds]
    recipe = Recipe.model_validate({"base_model": "acme/rented-base", "gate_mode": "random", "experts": experts})
    session = {"yaml": recipe.to_yaml(), "name": "rented", "made": {}}
    with Jobs(hub) as jobs, open_lab(python=python, session=session, height=2400) as lab:

        def press_twice() -> None:
            lab.at("merge-button").click()
            lab.told("merge", "warning", "costs $0.01 an hour, billed to newcomer.", 60)
            lab.told("merge", "warning", "Press Merge once more to rent it.")
            lab.at("merge-button").click()

        jobs.hold.clear()
        lab.run_all()
        lab.at("way").get_by_text("To the Hub, on a rented machine").click()
        lab.told("merge", "note", "Waiting for a token")
        lab.type_token(known_token)
        lab.told("merge", "note", "Press Merge. You are told the price first.")
        lab.at("straight-repo").locator("input").fill("newcomer/elsewhere")
        press_twice()
        expect(lab.at("merge-log")).to_contain_text("It goes on without this notebook; Stop", timeout=60_000)
        lab.shoot(request, "merge", "rented")
        lab.at("merge-stop").click()
        lab.told("merge", "warning", "The job has ended.")
        assert [job.stage for job in jobs.jobs.values()] == ["CANCELED"]
        press_twice()
        expect(lab.at("merge-log")).to_contain_text("It goes on without this notebook; Stop", timeout=60_000)

        lab.restart()
        lab.told("merge", "note", "Waiting for a token")
        lab.type_token(known_token)
        expect(lab.at("straight-repo").locator("input")).to_have_value("newcomer/elsewhere")
        lab.at("merge-button").click()
        expect(lab.at("merge-log")).to_contain_text("It goes on without this notebook; Stop", timeout=60_000)
        list(jobs.jobs.values())[-1].lines.append("The machine says <this>.")
        expect(lab.at("merge-log")).to_contain_text("The machine says <this>.")
        jobs.hold.set()
        lab.told("merge", "good", "It is on the Hub", 90)
        expect(lab.at("merge").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/elsewhere")
        expect(lab.at("bar-upload")).to_be_visible()
        assert len(jobs.jobs) == 2 and not lab.errors and not (lab.folder / "rented").exists()
    assert "config.json" in hub.repos["newcomer/elsewhere"].commits[-1].files


@pytest.mark.slow
def test_gguf_and_an_evaluation_are_made_on_a_rented_machine(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """With no mixture in a folder: GGUF of the recipe, and questions to the mixture that is on the Hub; each after a
    yes to its price, and each found again by a new kernel."""
    kinds = domains()[:2]
    for name in ("base", *(kind.name for kind in kinds)):
        hub.add(f"acme/far-{name}", demo_models / name)
    experts = [{"source_model": f"acme/far-{k.name}", "positive_prompts": list(k.prompts)} for k in kinds]
    recipe = Recipe.model_validate({"base_model": "acme/far-base", "gate_mode": "random", "experts": experts})
    merge_to_hub(recipe, "newcomer/far", tmp_path / "made", token=known_token)
    session = {"yaml": recipe.to_yaml(), "name": "far", "made": {}, "sent": "newcomer/far"}
    question = {"question": "What is a list?", "choices": ["It is changed in place", "no"], "answer": 0}
    with Jobs(hub) as jobs, open_lab(python=python, session=session, height=2400) as lab:
        (lab.folder / "mine.jsonl").write_text(json.dumps(question))

        def rent(panel: str, label: str) -> None:
            lab.at(f"{panel}-button").click()
            lab.told(panel, "warning", "costs $0.01 an hour, billed to newcomer.", 60)
            lab.told(panel, "warning", f"Press {label} once more to rent it.")
            lab.at(f"{panel}-button").click()
            expect(lab.at(f"{panel}-log")).to_contain_text("Stop ends it", timeout=60_000)

        jobs.hold.clear()
        lab.run_all()
        for panel in ("evaluate", "gguf"):
            lab.at(f"{panel}-machine").get_by_text("On a rented machine").click()
            lab.told(panel, "note", "Waiting for a token")
        lab.type_token(known_token)
        lab.choose("suite", "Questions of my own, or lm-eval's tasks by name")
        lab.at("own-tasks").locator("input").fill("mine.jsonl")
        lab.at("who").locator("select").select_option("the mixture alone")
        expect(lab.at("evaluated-repo").locator("input")).to_have_value("newcomer/far")
        rent("evaluate", "Evaluate")
        lab.shoot(request, "evaluate", "rented")
        rent("gguf", "Publish as GGUF")
        lab.shoot(request, "publish", "rented")
        stop(lab, "gguf", "gguf", "button")
        lab.told("gguf", "warning", "The job has ended.")
        lab.at("type-q8_0").locator("input").click()
        rent("gguf", "Publish as GGUF")
        stages = [job.stage for job in jobs.jobs.values()]
        assert stages == ["SCHEDULING", "CANCELED", "SCHEDULING"]

        lab.restart()
        lab.told("gguf", "note", "Waiting for a token")
        lab.type_token(known_token)
        expect(lab.at("own-tasks").locator("input")).to_have_value("mine.jsonl")
        for panel in ("evaluate", "gguf"):
            lab.at(f"{panel}-button").click()
            expect(lab.at(f"{panel}-log")).to_contain_text("Stop ends it", timeout=60_000)
        jobs.hold.set()
        lab.told("gguf", "good", "It is on the Hub", 120)
        expect(lab.at("gguf").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/far-GGUF")
        lab.told("evaluate", "good", "Evaluated.", 120)
        expect(lab.at("evaluate").locator("table")).to_contain_text("acc_norm, 1 question")
        assert len(jobs.jobs) == 3 and not lab.errors and not (lab.folder / "far").exists()
    assert {"far-Q4_K_M.gguf", "far-Q8_0.gguf"} <= hub.repos["newcomer/far-GGUF"].commits[-1].files.keys()
    assert "evaluation.json" in hub.repos["newcomer/far"].commits[-1].files


@pytest.mark.slow
def test_a_bad_mixture_is_not_published_unasked(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path
) -> None:
    """Eight experts behind random routers: worse than their average, which is said before it goes to the Hub."""
    experts = [
        {"source_model": str(demo_models / kind.name), "positive_prompts": list(kind.prompts)} for kind in domains()
    ]
    given = {"base_model": str(demo_models / "base"), "gate_mode": "random", "experts": experts * 2}
    recipe = Recipe.model_validate(given | {"shared_weights": "base"})
    session = {"yaml": recipe.to_yaml(), "name": "bad", "made": {}}
    with open_lab(python=python, session=session, height=2400) as lab:
        lab.run_all()
        lab.type_token(known_token)
        expect(lab.at("expert")).to_have_count(8)
        lab.at("merge-button").click()
        lab.told("merge", "good", "bad is ready", 60)
        lab.at("merge").get_by_text("Measure it on texts of your own").click()
        lab.at("unseen-0").locator("textarea").fill("\n".join(domains()[0].prompts))
        lab.at("measure-button").click()
        lab.told("merge", "error", "there are none for")
        lab.at("unseen-0").locator("textarea").fill("")
        lab.at("measure-button").click()
        lab.told("merge", "warning", "don't publish it", 60)
        lab.at("publish-button").click()
        lab.told("publish", "warning", "Press once more")
        assert "newcomer/bad" not in hub.repos
        lab.at("publish-button").click()
        lab.told("publish", "good", "It is on the Hub", 60)
        assert not lab.errors


@pytest.mark.slow
def test_a_narrow_window(open_lab: Open, request: pytest.FixtureRequest) -> None:
    """Nothing is wider than the page, on a phone's width of notebook."""
    with open_lab(width=480) as lab:
        lab.run_all()
        for panel in PANELS:
            inside = lab.at(panel).first.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
            assert inside, panel


@pytest.fixture(params=["JupyterLab", "Colab"])
def python(request: pytest.FixtureRequest) -> str:
    """The Python of a front end: today's JupyterLab, or Colab's generation."""
    python: str | None = request.config.getoption("--colab") if request.param == "Colab" else sys.executable
    return python or pytest.skip("needs --colab")


def long_recipe(folder: Path, demo_models: Path, hub: Hub, gate_mode: str) -> Recipe:
    """A recipe that takes some seconds: larger random models, the first of two experts on the Hub."""
    tokenizer = Tokenizer.from_file(str(demo_models / "base" / "tokenizer.json"))
    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**MODEL | shape))
    save(model, tokenizer, folder / "base")
    experts: list[dict[str, Any]] = []
    for kind in domains()[:2]:
        for parameter in model.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        save(model, tokenizer, folder / kind.name)
        prompts = [kind.train[i : i + 500] for i in range(0, 8000, 500)]
        experts.append({"source_model": str(folder / kind.name), "positive_prompts": prompts})
    hub.add("acme/slow", Path(experts[0]["source_model"]))
    experts[0]["source_model"] = "acme/slow"
    return Recipe.model_validate({"base_model": str(folder / "base"), "gate_mode": gate_mode, "experts": experts})


def stop(lab: Lab, panel: str, name: str, way: str) -> None:
    """Stop a panel's work, by its button or by the kernel's ■, within two seconds."""
    button = lab.at(f"{name}-stop")
    expect(button).to_be_visible()
    if way == "■":
        button = lab.page.get_by_role("button", name=re.compile("^Interrupt the kernel")).first
    began = time.monotonic()
    button.click()
    lab.told(panel, "warning", "Stopped.", 20)
    took = time.monotonic() - began
    print(f"{name}, {way}: stopped in {took:.2f} s")
    assert took < (20 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # beside other tests all takes longer
    expect(lab.at(f"{name}-stop")).not_to_be_visible()


def test_a_merge_can_be_stopped(
    open_lab: Open, python: str, hub: Hub, demo_models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """By its Stop button and by the kernel's ■; meanwhile other panels answer. Pressed again, after a restart too, it
    goes on, and the bytes are those of an undisturbed merge."""
    recipe = long_recipe(tmp_path / "models", demo_models, hub, "fit")
    with open_lab(python=python, session={"yaml": recipe.to_yaml(), "name": "stopped"}, height=2400) as lab:
        lab.run_all()
        hub.fault("GET .*/acme/slow/resolve/.*safetensors", "slow", seconds=3)
        lab.at("merge-button").click()
        lab.told("merge", "note", "Working", 1)
        stop(lab, "merge", "merge", "■")  # while it waits for the Hub

        lab.at("merge-button").click()
        expect(lab.at("bar-sweep")).to_be_visible(timeout=60_000)
        lab.told("merge", "note", "Working", 1)
        lab.told("merge", "note", "To download:", 1)
        expect(lab.at("publish-button")).to_be_disabled()
        lab.at("check-button").click()
        lab.told("check", "good", "This can be merged")
        lab.shoot(request, "merge", "running")
        stop(lab, "merge", "merge", "button")
        lab.shoot(request, "merge", "stopped")

        lab.restart()
        lab.told("merge", "note", "Press Merge")
        lab.at("merge-button").click()
        lab.told("merge", "good", "stopped is ready", 120)
        assert not lab.errors
    merge(recipe, tmp_path / "whole")
    weights = "model-00001-of-00001.safetensors"
    assert (tmp_path / "work" / "stopped" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.slow
def test_a_mixture_is_tried_with_the_keyboard(
    open_lab: Open, python: str, demo_models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Enter asks, in the chat and for a comparison; and in a narrow column all of it has room."""
    recipe = demo_recipe(demo_models, domains(), "fit")
    merge(recipe, tmp_path / "work" / "merged")
    with open_lab(python=python, session={"yaml": recipe.to_yaml(), "name": "merged"}, width=480, height=2400) as lab:
        lab.run_all()
        lab.at("chat-message").locator("input").fill("What is a statement?")
        lab.page.keyboard.press("Enter")
        expect(lab.at("said").filter(has_text="Mixture:")).to_be_visible(timeout=60_000)
        expect(lab.at("chat-message").locator("input")).to_have_value("")
        expect(lab.at("chat-stop")).not_to_be_visible(timeout=60_000)
        lab.at("compare-expert").locator("select").select_option("2 · english")
        lab.at("compare-question").locator("input").fill("The name of the object")
        lab.page.keyboard.press("Enter")
        expect(lab.at("answer").nth(2).locator("footer")).to_contain_text(" s.", timeout=60_000)
        assert lab.at("answer").locator("small").all_inner_texts() == ["base", "english", "merged"]
        lab.at("try-text").locator("textarea").fill("a 🧩 puzzle: naïve " + "x" * 60)
        lab.at("route-button").focus()
        lab.page.keyboard.press("Enter")
        expect(lab.at("token-of-text").filter(has_text="🧩")).to_be_visible(timeout=30_000)
        for fold in lab.at("try").locator("summary").all():
            fold.click()
        expect(lab.at("map")).to_be_visible()
        lab.shoot(request, "try", "asked")
        inside = lab.at("try").first.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
        assert inside and not lab.errors


@pytest.mark.slow
def test_chat_upload_and_training_can_be_stopped(
    open_lab: Open, python: str, known_token: str, hub: Hub, demo_models: Path, tmp_path: Path
) -> None:
    """By their Stop buttons and by the kernel's ■, and they go on when asked to again."""
    recipe = long_recipe(tmp_path / "models", demo_models, hub, "random")
    merge(recipe, tmp_path / "work" / "merged")
    session = {"yaml": recipe.to_yaml(), "name": "merged"}
    variables = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "empty")}
    with open_lab(python=python, session=session, height=2400, variables=variables) as lab:
        lab.run_all()
        lab.type_token(known_token)
        answers = lab.at("try").locator("p", has_text="Mixture:")
        for way in ("button", "■"):
            before = answers.count()
            lab.at("chat-message").locator("input").fill("What is a statement?")
            lab.at("chat-send").click()
            expect(answers).to_have_count(before + 1, timeout=60_000)
            stop(lab, "try", "chat", way)
            said = answers.last.inner_text()
            lab.at("chat-send").click()
            expect(lab.at("chat-stop")).not_to_be_visible(timeout=60_000)
            assert answers.last.inner_text().startswith(said) and answers.count() == before + 1
        for way in ("button", "■"):
            slow = hub.fault("POST .*/(commit|preupload)/", "slow", seconds=4)
            lab.at("publish-button").click()
            lab.told("publish", "note", "Working", 1)
            time.sleep(0.5)
            stop(lab, "publish", "publish", way)
            slow.times = 0
        lab.at("publish-button").click()
        lab.told("publish", "good", "It is on the Hub", 60)
        for way in ("button", "■"):
            lab.choose("menu", DEMO)
            expect(lab.at("bar-train")).to_be_visible(timeout=1000)
            stop(lab, "recipe", "training", way)
        lab.choose("menu", DEMO)
        expect(lab.at("expert")).to_have_count(4, timeout=120_000)
        assert not lab.errors


@pytest.mark.slow
def test_the_notebook_that_is_one_file(open_lab: Open, python: str, one_file: Path, tmp_path: Path) -> None:
    """In an empty folder, for a kernel that knows no LazyMoE, without an index: Run All, and every panel is there."""
    newcomer = make_newcomer(tmp_path, python)
    assert newcomer.run("import lazymoe").returncode
    with open_lab(file=one_file, python=newcomer.python, variables=newcomer.variables) as lab:
        lab.run_all()
        expect(lab.page.get_by_text("Installing LazyMoE from")).to_be_visible()
        lab.told("check", "note", "Waiting")
        assert not lab.errors
    assert list(newcomer.home.glob("lib/python*/site-packages/lazymoe/notebook"))


@pytest.mark.slow
def test_a_mixture_is_evaluated(
    open_lab: Open, python: str, demo_models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Questions of one's own, asked of the mixture and its parts; stopped, and gone on with; the card has the table."""
    if subprocess.run([python, "-c", "import lm_eval, peft, scipy"], capture_output=True).returncode:
        pytest.skip("needs EleutherAI's lm-eval in the notebook's Python")
    recipe = demo_recipe(demo_models, domains(), "fit")
    merge(recipe, tmp_path / "work" / "asked")
    lines = [{"question": kind.held[i : i + 40], "choices": [kind.held[i + 40 : i + 60], "no"], "answer": 0}
             for kind in domains() for i in range(0, 240, 60)]  # fmt: skip
    (tmp_path / "work" / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    session = {"yaml": recipe.to_yaml(), "name": "asked"}
    with open_lab(python=python, session=session, height=2400, variables=variables) as lab:
        lab.run_all()
        lab.told("evaluate", "note", "Choose what is asked, and press Evaluate.")
        lab.choose("suite", "Questions of my own, or lm-eval's tasks by name")
        lab.at("own-tasks").locator("input").fill("nothing.jsonl")
        lab.at("evaluate-button").click()
        lab.told("evaluate", "error", "nothing.jsonl: it can't be read", 60)
        lab.at("own-tasks").locator("input").fill("mine.jsonl")
        lab.at("evaluate-button").click()
        expect(lab.at("bar-evaluate")).to_be_visible(timeout=60_000)
        stop(lab, "evaluate", "evaluate", "button")
        lab.at("evaluate-button").click()
        lab.told("evaluate", "good", "The mixture against the base model: ", 60)
        table = lab.at("evaluate").locator("table")
        expect(table).to_contain_text("acc_norm, 16 questions")
        expect(table.locator("tr")).to_have_count(4)
        lab.shoot(request, "evaluate", "done")
        lab.at("publish").get_by_text("Preview of the model card").click()
        expect(lab.at("publish").get_by_role("heading", name="Evaluation")).to_be_visible()
        lab.told("merge", "note", "The mixture against the base model: ")
        assert not lab.errors
    assert json.loads((tmp_path / "work" / "asked" / "evaluation.json").read_text())["limit"] == 100
