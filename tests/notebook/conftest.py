"""What the notebook's tests share: a newcomer, and the notebook that is one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from newcomer import Newcomer, make_newcomer, pack


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return make_newcomer(tmp_path)


@pytest.fixture(scope="session")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook that carries LazyMoE, as docs/pack_notebook.py makes it."""
    return pack(tmp_path_factory.mktemp("packed") / "LazyMoE.ipynb")
