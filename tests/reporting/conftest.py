"""The demo's mixture, for each file of tests one to itself: some save reports in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazymoe import merge
from lazymoe.demonstration.models import domains
from lazymoe.demonstration.story import demo_recipe


@pytest.fixture(scope="module")
def moe(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moe") / "moe"
    merge(demo_recipe(demo_models, domains(), "fit"), out, device="cpu")
    return out
