"""The notebook on a page of JupyterLab, as the browser tests handle it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "LazyMoE.ipynb"
TOKEN = "hf_" + "NotebookTokenThatNobodyMayFind"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
SETTINGS = "@jupyterlab/apputils-extension/{}.jupyterlab-settings"
PANELS = ("setup", "recipe", "check", "merge", "try", "evaluate", "publish")


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

    def restart(self) -> None:
        """Restart the kernel and run all cells."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Restart Kernel and Run All Cells")).click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()

    def type_token(self, token: str) -> None:
        self.at("token").locator("input").fill(token)
        self.page.keyboard.press("Enter")
        self.told("setup", "good", "You are newcomer")

    def shoot(self, request: pytest.FixtureRequest, panel: str, state: str) -> None:
        """Keep pictures of a panel if asked to: on a light page, on a dark one, and in a narrow column."""
        folder, before = request.config.getoption("--screenshots"), self.page.viewport_size
        if not folder or not before:
            return
        for look, width in (("dark", 1200), ("narrow", 480), ("light", 1200)):
            theme = f"JupyterLab {'Dark' if look == 'dark' else 'Light'}"
            self.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
            expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", theme)
            expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)
            self.page.set_viewport_size({"width": width, "height": before["height"]})
            self.at(panel).first.screenshot(path=Path(folder) / f"{panel}-{state}-{look}.png")
        self.page.set_viewport_size(before)

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
