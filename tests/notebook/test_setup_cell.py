"""The notebook's first cell finds LazyMoE: its own source, against stand-ins for pip and Colab, and with pip itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from newcomer import Newcomer, pack

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "LazyMoE.ipynb"
PAGE = "https://github.com/somebody/lazymoe/blob/main/LazyMoE.ipynb"
ZIP = "lazymoe @ https://github.com/somebody/lazymoe/archive/{}.zip"


def first_cell(notebook: Path = NOTEBOOK, **filled: str) -> str:
    """The source of the first cell with code, with some of its fields filled in."""
    source = next(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    for name, value in filled.items():
        assert f'\n{name} = ""' in source
        source = source.replace(f'\n{name} = ""', f"\n{name} = {value!r}", 1)
    return source


class Pip:
    """Stands in for pip: keeps what it was asked for, and has LazyMoE in some places."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.has: set[str] = set()
        self.installed = False

    def run(self, command: list[str], **_: Any) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--upgrade" not in command
        self.asked.append(command[-1])
        self.installed = command[-1] in self.has
        told = f"WARNING: slow\nERROR: no {command[-1]}\nhint: none\n"
        return SimpleNamespace(returncode=not self.installed, stderr="" if self.installed else told)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pip:
    """A machine without LazyMoE, in an empty folder."""
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip.run)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name, path: [name] * pip.installed)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr("lazymoe.notebook.setup", lambda: None)
    monkeypatch.delenv("COLAB_JUPYTER_IP", raising=False)
    monkeypatch.chdir(tmp_path)
    return pip


def run(**filled: str) -> None:
    exec(compile(first_cell(**filled), "first cell", "exec"), {})


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Stands in for the server that a Colab runtime has: it tells which notebook is open."""
    told = SimpleNamespace(body=b"[]", answers=Event())
    told.answers.set()

    class Sessions(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/sessions"
            told.answers.wait()
            with contextlib.suppress(BrokenPipeError):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(told.body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Sessions) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("COLAB_JUPYTER_IP", "127.0.0.1")
        monkeypatch.setenv("KMP_TARGET_PORT", str(server.server_port))
        yield told
        told.answers.set()
        server.shutdown()


def opened(path: str) -> bytes:
    """What Colab's server says of a notebook."""
    kernel = {"id": "5e55", "name": "python3"}
    session = {"id": "c01ab", "path": path, "name": "LazyMoE.ipynb", "type": "notebook", "kernel": kernel}
    return json.dumps([session]).encode()


def test_nothing_is_done_where_lazymoe_is_installed(pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    pip.installed = True
    run(source="git+https://elsewhere/lazymoe")
    assert pip.asked == [] and capsys.readouterr().out == ""


def test_places_in_their_order(
    pip: Pip, colab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout around the notebook, the repository it was opened from, the known repository, the index."""
    colab.body = opened("fileId=https%3A//github.com/somebody/lazymoe/blob/main/LazyMoE.ipynb")
    (tmp_path / "lazymoe" / "notebook").mkdir(parents=True)
    (tmp_path / "lazymoe" / "notebook" / "setup_panel.py").touch()
    below = tmp_path / "my" / "notebooks"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    order = [str(tmp_path), ZIP.format("main"), "lazymoe @ https://github.com/the/known/archive/HEAD.zip", "lazymoe"]
    for tried, place in enumerate(order):
        pip.asked, pip.has, pip.installed = [], {place}, False
        run(repository="https://github.com/the/known")
        assert pip.asked == order[: tried + 1]


def test_what_the_user_says_is_all_that_is_tried(pip: Pip, colab: SimpleNamespace, tmp_path: Path) -> None:
    colab.body = opened("fileId=https%3A//github.com/somebody/lazymoe/blob/main/LazyMoE.ipynb")
    with pytest.raises(Exception, match="isn't installed yet"):
        run(source=" https://github.com/me/mine ", repository="https://github.com/the/known")
    assert pip.asked == ["lazymoe @ https://github.com/me/mine/archive/HEAD.zip"]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("https://github.com/somebody/lazymoe", ZIP.format("HEAD")),
        ("https://github.com/somebody/lazymoe/", ZIP.format("HEAD")),
        ("https://github.com/somebody/lazymoe.git", ZIP.format("HEAD")),
        ("https://github.com/somebody/lazymoe/tree/v1.0", ZIP.format("v1.0")),
        ("https://github.com/somebody/lazymoe/blob/fix/the/cell/LazyMoE.ipynb", ZIP.format("fix/the/cell")),
        (
            "https://github.com/somebody/lazymoe/archive/main.zip",
            "https://github.com/somebody/lazymoe/archive/main.zip",
        ),
        ("git+https://elsewhere/lazymoe@main", "git+https://elsewhere/lazymoe@main"),
        ("lazymoe==0.1", "lazymoe==0.1"),
        ("fold er", "{here}/fold er"),
        ("./fold er", "{here}/fold er"),
        ("~/fold er", "{here}/fold er"),
    ],
)
def test_ways_to_say_where(pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, asked: str) -> None:
    (tmp_path / "fold er").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    pip.has = {asked.format(here=tmp_path)}
    run(source=said)
    assert pip.installed


@pytest.mark.parametrize(
    "body",
    [
        opened("fileId=1aBcDeFgHiJkLmNoPqRsTuVwXyZ"),  # uploaded, or a copy in Drive
        opened("fileId=https%3A//github.com/somebody/notes/blob/main/mixtures.ipynb"),
        opened("LazyMoE.ipynb"),
        b"[]",
        b"<html>\xff",
    ],
)
def test_colab_knows_no_repository(pip: Pip, colab: SimpleNamespace, body: bytes) -> None:
    colab.body = body
    pip.has = {"lazymoe"}
    run()
    assert pip.asked == ["lazymoe"]


def test_colab_does_not_answer(pip: Pip, colab: SimpleNamespace) -> None:
    colab.answers.clear()
    pip.has = {"lazymoe"}
    run()
    assert pip.asked == ["lazymoe"]


def test_what_is_shown(pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    """Each place with pip's reason or the time it took."""
    pip.has = {"lazymoe"}
    run(repository="https://github.com/somebody/lazymoe")
    first, second = capsys.readouterr().out.splitlines()
    zip_file = ZIP.format("HEAD")
    assert first == f"Installing LazyMoE from https://github.com/somebody/lazymoe: ERROR: no {zip_file}"
    assert second == "Installing LazyMoE from lazymoe: 0 s"


def test_a_package_that_is_not_lazymoe(pip: Pip, capsys: pytest.CaptureFixture[str]) -> None:
    pip.has = {"numpy"}
    pip.run = lambda *_, **__: SimpleNamespace(returncode=0, stderr="")  # type: ignore[method-assign]
    subprocess.run = pip.run  # type: ignore[assignment]
    with pytest.raises(Exception, match="isn't installed yet"):
        run(source="numpy")
    assert "numpy: no LazyMoE is there" in capsys.readouterr().out


def test_packages_of_the_user_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where pip has to make the folder of the user's packages, Python doesn't know it yet."""
    packages, here = tmp_path / "user", tmp_path / "here"
    here.mkdir()

    def run_pip(*_: Any, **__: Any) -> SimpleNamespace:
        (packages / "lazymoe-1.0.dist-info").mkdir(parents=True)
        (packages / "lazymoe-1.0.dist-info" / "METADATA").write_text("Name: lazymoe\nVersion: 1.0\n")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run_pip)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(packages))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    monkeypatch.setattr("lazymoe.notebook.setup", lambda: None)
    (here / "lazymoe.egg-info").mkdir()  # left by a build, it is nothing installed
    (here / "lazymoe.egg-info" / "PKG-INFO").write_text("Name: lazymoe\nVersion: 1.0\n")
    monkeypatch.chdir(here)
    run()
    assert str(packages) in sys.path


def test_what_a_notebook_shows_if_nothing_is_found(newcomer: Newcomer) -> None:
    """Two lines: what was tried, and what to do. No traceback."""
    shell = f"import IPython\nIPython.start_ipython(['--colors=NoColor', '--no-banner', '-c', {first_cell()!r}])"
    done = newcomer.run(shell)
    tried, advice = done.stdout.splitlines()
    assert tried == "Installing LazyMoE from lazymoe: ERROR: No matching distribution found for lazymoe"
    assert advice.startswith("LazyMoE isn't installed yet. Write into this cell, behind `source`, where to get it")
    assert not done.stderr


def shown_by(newcomer: Newcomer, cell: str, folder: Path | None = None) -> str:
    """Run a first cell; LazyMoE comes from the newcomer's own packages then, with all that belongs to it."""
    cell += "\nimport lazymoe.data; print(*lazymoe.data.ready_made().values())"
    done = newcomer.run(cell, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    recipes = done.stdout.splitlines()[-1].split()
    assert recipes and all(Path(recipe).is_relative_to(newcomer.home / "lib") for recipe in recipes)
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """Copy what git keeps."""
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_from_a_checkout(newcomer: Newcomer, tmp_path: Path) -> None:
    """With pip itself, from a folder below the checkout's."""
    checkout = copy_checkout(tmp_path / "check out")
    told = shown_by(newcomer, first_cell(), checkout / "recipes")
    assert f"Installing LazyMoE from {checkout}: " in told


@pytest.mark.slow
def test_from_itself(newcomer: Newcomer, one_file: Path) -> None:
    """With pip itself: the notebook that is one file needs no checkout, no index, and the second time no pip."""
    assert "Installing LazyMoE from " in shown_by(newcomer, first_cell(one_file))
    assert "Installing" not in shown_by(newcomer, first_cell(one_file))
    assert list(newcomer.folder.iterdir()) == []


def test_the_one_file_is_the_notebook(one_file: Path) -> None:
    """All cells are LazyMoE.ipynb's; its first code has what it carries beside that."""
    packed, notebook = nbformat.read(one_file, 4), nbformat.read(NOTEBOOK, 4)
    nbformat.validate(packed)
    assert packed.metadata == notebook.metadata
    [(mine, own)] = [(a, b) for a, b in zip(packed.cells, notebook.cells, strict=True) if a != b]
    assert mine.metadata == own.metadata and own.source == first_cell()
    assert set(own.source.splitlines()) < set(mine.source.splitlines())


def test_the_one_file_depends_on_the_files_alone(one_file: Path, tmp_path: Path) -> None:
    """From another folder, at another time, with what earlier builds left: the same bytes."""
    checkout = copy_checkout(tmp_path / "checkout")
    left = checkout / "build" / "lib" / "lazymoe" / "old.py"
    left.parent.mkdir(parents=True)
    left.touch()
    (checkout / "lazymoe" / "__pycache__").mkdir()
    (checkout / "templates" / "__pycache__").mkdir()
    (checkout / "templates" / "__pycache__" / "old.pyc").touch()
    again = pack(tmp_path / "again.ipynb", checkout)
    assert again.read_bytes() == one_file.read_bytes()
