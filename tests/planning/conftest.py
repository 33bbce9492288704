"""Two models that fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import Make


@pytest.fixture
def pair(make: Make) -> tuple[Path, Path]:
    return make("base", seed=1), make("expert", seed=2)
