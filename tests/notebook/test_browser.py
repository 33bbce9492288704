"""The notebook in real front ends: every cell runs, and a browser goes the whole way from Run All to a published model.

pytest tests/test_notebook.py --screenshots docs          # also keep the pictures
pytest tests/test_notebook.py --colab PYTHON              # also Colab's generation of Jupyter
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from hub_server import Hub, User
from nbclient import NotebookClient
from newcomer import Newcomer
from playwright.sync_api import Locator, Page, expect, sync_playwright
from transformers import AutoModelForCausalLM

from lazymoe.notebook.recipe_panel import DEMO

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "LazyMoE.ipynb"
TOKEN = "hf_" + "NotebookTokenThatNobodyMayFind"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
SETTINGS = "@jupyterlab/apputils-extension/{}.jupyterlab-settings"
PANELS = ("setup", "recipe", "check", "merge", "try", "publish")


class Lab:
    """A page with the notebook open in JupyterLab."""

    def __init__(self, page: Page, folder: Path, errors: list[str]) -> None:
        self.page, self.folder, self.errors = page, folder, errors
        self.clicks = 0

    def at(self, name: str) -> Locator:
        """What has this class of ours."""
        return self.page.locator(f".lazymoe-{name}")

    def click(self, what: Locator) -> None:
        what.click()
        self.clicks += 1

    def choose(self, name: str, option: str) -> None:
        """A menu is opened with one click, and its entry chosen with another."""
        self.at(name).locator("select").select_option(option)
        self.clicks += 2

    def run_all(self) -> None:
        self.click(self.page.get_by_role("menuitem", name="Run", exact=True))
        self.click(self.page.get_by_role("menuitem", name="Run All Cells", exact=True))
        for panel in PANELS:
            expect(self.at(panel).first).to_be_attached(timeout=60_000)

    def type_token(self, token: str) -> None:
        self.at("token").locator("input").fill(token)
        self.page.keyboard.press("Enter")
        self.told("publish", "good", "You are newcomer")

    def shoot(self, request: pytest.FixtureRequest, panel: str, theme: str) -> None:
        """Keep a picture of a panel, if asked to."""
        if folder := request.config.getoption("--screenshots"):
            self.at(panel).first.screenshot(path=Path(folder) / f"{panel}-{theme}.png")

    def told(self, panel: str, kind: str, words: str, seconds: float = 30) -> None:
        """Wait until a panel says something."""
        message = self.at(panel).locator(f".lazymoe-{kind}", has_text=words).first
        expect(message).to_be_visible(timeout=seconds * 1000)

    def save(self) -> None:
        """Save the notebook, its widgets' state with it."""
        before = NOTEBOOK.stat().st_size
        self.page.get_by_role("button", name=re.compile("^Save and create checkpoint")).click()
        for _ in range(100):
            if (self.folder / NOTEBOOK.name).stat().st_size > 2 * before:
                return
            time.sleep(0.1)
        raise AssertionError("the notebook was not saved")


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def open_lab(browser: Any, tmp_path: Path, hub: Hub, demo_models: Path) -> Open:
    """``with open_lab(dark=False, python=sys.executable) as lab``: the notebook in a JupyterLab of its own."""

    @contextlib.contextmanager
    def open_lab(
        dark: bool = False,
        python: str = sys.executable,
        width: int = 1200,
        height: int = 900,
        first_cell: str = "",
        file: Path = NOTEBOOK,
        variables: dict[str, str] | None = None,
    ) -> Iterator[Lab]:
        folder = tmp_path / "work"
        folder.mkdir()
        notebook = nbformat.read(file, 4)
        notebook.cells[:0] = [nbformat.v4.new_code_cell(first_cell)] if first_cell else []
        nbformat.write(notebook, folder / NOTEBOOK.name)
        settings = {
            SETTINGS.format("notification"): {"fetchNews": "false", "checkForUpdates": False},
            SETTINGS.format("themes"): {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"},
            "@jupyter-widgets/jupyterlab-manager/plugin.jupyterlab-settings": {"saveState": True},
            # all cells are on the page from the start, as they are in Colab
            "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
        }
        for name, values in settings.items():
            file = tmp_path / "settings" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HF_HOME")
        environment = (variables or dict(os.environ)) | {name: str(tmp_path / name) for name in places}
        environment["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / "settings")
        environment["HF_ENDPOINT"] = hub.url
        command = [python, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
                   "--ServerApp.token=lab", f"--ServerApp.root_dir={folder}"]  # fmt: skip
        log = (tmp_path / "lab.log").open("w")
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="dark" if dark else "light")
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        try:
            _wait_for(port)
            page.goto(f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token=lab&reset")
            page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=60_000)
            page.get_by_text("(ipykernel) | Idle").first.wait_for(timeout=60_000)
            page.keyboard.press("Control+b")  # the list of files takes a third of the page
            page.set_viewport_size({"width": width, "height": height})
            yield Lab(page, folder, errors)
        finally:
            context.close()
            server.terminate()
            server.wait(20)
            log.close()

    return open_lab


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start")


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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_newcomer_publishes_the_demo(
    open_lab: Open, known_token: str, hub: Hub, request: pytest.FixtureRequest, theme: str
) -> None:
    """From opening the notebook to a published model: eight clicks at most, and nothing typed but the token."""
    with open_lab(dark=theme == "dark", height=2400) as lab:
        lab.run_all()
        lab.choose("menu", DEMO)
        lab.told("check", "note", "Press Check")
        lab.click(lab.at("check-button"))
        lab.told("check", "good", "This can be merged")
        lab.click(lab.at("merge-button"))
        lab.told("merge", "good", "my-moe is ready", 90)
        lab.type_token(known_token)
        lab.click(lab.at("publish-button"))
        lab.told("publish", "good", "It is on the Hub", 60)
        expect(lab.at("link").locator("a")).to_have_attribute("href", f"{hub.url}/newcomer/my-moe")
        assert lab.clicks <= 8

        text = "def add(first, second): return first + second  The sum is returned if both of them are numbers."
        lab.at("try-text").locator("textarea").fill(text)
        lab.at("route-button").click()
        expect(lab.at("token-of-text").nth(6)).to_be_visible(timeout=30_000)
        for panel in PANELS:
            lab.shoot(request, panel, theme)
        lab.at("publish").get_by_text("Preview of the model card").click()
        expect(lab.at("publish").get_by_role("heading", name="Experts")).to_be_visible()
        expect(lab.at("publish").get_by_role("img")).to_be_visible()
        lab.at("chat-message").locator("input").fill("What is a statement?")
        lab.at("chat-send").click()
        expect(lab.at("try").get_by_text("Mixture:")).to_be_visible(timeout=60_000)
        assert not lab.errors


def test_the_whole_way(open_lab: Open, known_token: str, hub: Hub, demo_models: Path, tmp_path: Path) -> None:
    """A recipe with a mistake, mended, checked, merged, tried, published, and loaded from the Hub; and the token, typed
    on the way, is nowhere."""
    with open_lab() as lab:
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


def test_the_search_for_the_token_can_fail(open_lab: Open, known_token: str, tmp_path: Path) -> None:
    """With the wiping of the box switched off, the saved notebook holds the token, and the search finds it there."""
    keep = (
        "from lazymoe.notebook.publish_panel import Publish\n"
        "Publish._received = lambda self, change: self._use(change['new'], '')"
    )
    with open_lab(first_cell=keep) as lab:
        lab.run_all()
        lab.type_token(known_token)
        lab.save()
        assert str(tmp_path / "work" / NOTEBOOK.name) in leaks(known_token, tmp_path)


def test_a_narrow_window(open_lab: Open) -> None:
    """Nothing is wider than the page, on a phone's width of notebook."""
    with open_lab(width=480) as lab:
        lab.run_all()
        for panel in PANELS:
            inside = lab.at(panel).first.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
            assert inside, panel


def test_the_notebook_that_is_one_file(open_lab: Open, newcomer: Newcomer, one_file: Path) -> None:
    """In an empty folder, for a kernel that knows no LazyMoE, without an index: Run All, and every panel is there."""
    assert newcomer.run("import lazymoe").returncode
    with open_lab(file=one_file, python=newcomer.python, variables=newcomer.variables) as lab:
        lab.run_all()
        expect(lab.page.get_by_text("Installing LazyMoE from")).to_be_visible()
        lab.told("check", "note", "Waiting")
        assert not lab.errors
    assert list(newcomer.home.glob("lib/python*/site-packages/lazymoe/notebook"))


def test_colabs_generation(open_lab: Open, request: pytest.FixtureRequest) -> None:
    """ipywidgets 7.7.1: panels show, the form works, a merge runs and its progress moves."""
    python = request.config.getoption("--colab")
    if not python:
        pytest.skip("needs --colab")
    with open_lab(python=python) as lab:
        lab.run_all()
        lab.choose("menu", DEMO)
        expect(lab.at("expert")).to_have_count(4, timeout=90_000)
        lab.at("expert").nth(0).locator(".lazymoe-expert-model input").fill("")
        expect(lab.at("expert").nth(0).locator(".lazymoe-error")).to_be_visible()
        lab.at("expert").nth(0).locator(".lazymoe-remove").click()
        expect(lab.at("expert")).to_have_count(3)
        lab.at("merge-button").click()
        expect(lab.at("bar-write")).to_be_visible(timeout=60_000)
        lab.told("merge", "good", "my-moe is ready", 90)
        width = lab.at("bar-write").locator(".progress-bar").evaluate("e => e.style.width")
        assert width == "100%"
        assert not lab.errors
