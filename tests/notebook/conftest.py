"""What the notebook's tests share: a newcomer, and the notebook that is one file."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hub_server import Hub
from lab import CHROMIUM, NOTEBOOK, SETTINGS, Lab, Open
from newcomer import Newcomer, make_newcomer, pack
from playwright.sync_api import sync_playwright

from lazymoe.notebook.session import FILE


@pytest.fixture
def untraced() -> Iterator[None]:
    """No coverage: under it, in Python 3.11, whoever enters a function waits until an interrupt has reached its
    thread, and that may wait for whoever enters a function."""
    before = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    yield
    threading.settrace(before[1])  # type: ignore[arg-type]
    sys.settrace(before[0])


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return make_newcomer(tmp_path)


@pytest.fixture(scope="session")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook that carries LazyMoE, as docs/pack_notebook.py makes it."""
    return pack(tmp_path_factory.mktemp("packed") / "LazyMoE.ipynb")


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
    """``with open_lab(python=sys.executable) as lab``: the notebook in a JupyterLab of its own."""

    @contextlib.contextmanager
    def open_lab(
        python: str = sys.executable,
        width: int = 1200,
        height: int = 900,
        first_cell: str = "",
        session: dict[str, Any] | None = None,
        file: Path = NOTEBOOK,
        variables: dict[str, str] | None = None,
    ) -> Iterator[Lab]:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        if session:
            (folder / FILE).write_text(json.dumps(session))
        notebook = nbformat.read(file, 4)
        notebook.cells[:0] = [nbformat.v4.new_code_cell(first_cell)] if first_cell else []
        nbformat.write(notebook, folder / NOTEBOOK.name)
        settings = {
            SETTINGS.format("notification"): {"fetchNews": "false", "checkForUpdates": False},
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
        environment |= {"HF_ENDPOINT": hub.url}
        command = [python, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
                   "--ServerApp.token=lab", "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]  # fmt: skip
        log = (tmp_path / "lab.log").open("w")
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        try:
            _wait_for(port)
            page.goto(f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}?token=lab&reset")
            page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(timeout=120_000)
            page.get_by_text("(ipykernel) | Idle").first.wait_for(timeout=120_000)
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
