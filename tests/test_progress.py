"""Progress: bars that fit the terminal, plain lines in a pipe, nothing where nobody wants it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from lazymoe.progress import SELDOM, STAGES, Telling, _Lines, bars, heard, silent

WORK = """
import sys, time
from lazymoe.progress import STAGES, bars
with bars(quiet=len(sys.argv) > 1) as progress:
    for stage, (_, unit) in STAGES.items():
        total = 5_000_000_000 if unit == "B" else 12
        for part in range(5):
            progress(stage, total * part // 4, total)
            time.sleep(0.06)
"""


TOGETHER = """
import time
from threading import Thread
from lazymoe.progress import bars
def go(stage, total, begin, pause):
    for done in range(begin, 21):
        progress(stage, total * done // 20, total)
        time.sleep(pause)
with bars() as progress:
    size = 10**9
    stages = [("download", size, 10, 0.25), ("sweep", 20, 0, 0.13), ("write", size, 0, 0.15), ("upload", size, 0, 0.17)]
    threads = [Thread(target=go, args=stage) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def on_a_terminal(columns: int, *arguments: str, work: str = WORK) -> str:
    """What the work shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", work, *arguments], stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def in_a_pipe(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", WORK, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout, done.stderr
    return done.stderr


@pytest.mark.parametrize("columns", [50, 80, 160])
def test_a_bar_fits_the_terminal(columns: int) -> None:
    shown = on_a_terminal(columns)
    pictures = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", p).rstrip() for p in re.split(r"[\r\n]+", shown)]
    assert max(map(len, pictures)) <= columns
    for label, _ in STAGES.values():
        own = [p for p in pictures if p.startswith(label if columns >= 100 else label.split()[0])]
        assert own, label
        assert any("100%" in p for p in own), label
    assert ("█" in shown) is (columns >= 100)
    assert re.search(r"\d(\.\d+)?[kMG]B/s", shown)


def screens(shown: str) -> list[list[str]]:
    """What stands on a terminal's lines, after each picture that was drawn."""
    lines, row, found = [""], 0, []
    for part in re.findall(r"\r|\n|\x1b\[A|\x1b\[[0-9;]*[A-Za-z]|[^\r\n\x1b]+", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif part.strip() and not part.startswith("\x1b"):
            lines[row] = part.rstrip()
            found.append([line for line in lines if line])
    return found


def test_stages_that_go_on_together_have_a_bar_each() -> None:
    """Told of by several threads; none jumps, none is done before its work is, and each has its rate and time left."""
    drawn = screens(on_a_terminal(120, work=TOGETHER))
    labels = [STAGES[stage][0] for stage in ("download", "sweep", "write", "upload")]
    whole = [screen for screen in drawn if len(screen) == 4]
    assert len(whole) > 20
    assert all(sorted(line.partition(":")[0] for line in screen) == sorted(labels) for screen in whole)
    for label in labels:
        lines = [line for screen in whole for line in screen if line.startswith(label)]
        parts = [int(re.search(r"(\d+)%", line)[1]) for line in lines]  # type: ignore[index]
        assert parts == sorted(parts) and parts[-1] == 100 and len(set(parts)) > 5
        assert any(re.search(r"<\d\d:\d\d, +\d", line) for line in lines)
    [resumed] = [line for line in drawn[-1] if line.startswith("Downloading")]
    rate = float(re.search(r"([\d.]+)MB/s", resumed)[1])  # type: ignore[index]
    assert rate < 500 / (10 * 0.25) * 1.1  # of the half that was downloaded now


def test_a_pipe_gets_plain_lines() -> None:
    shown = in_a_pipe()
    assert "\r" not in shown and "\x1b" not in shown
    lines = shown.splitlines()
    for label, unit in STAGES.values():
        amount = "5.0 GB" if unit == "B" else f"12 {unit}s"
        assert [line for line in lines if line.startswith(label)] == [
            f"{label}: 0% of {amount}",
            f"{label}: 100% of {amount}",
        ]


@pytest.mark.parametrize("show", [in_a_pipe, lambda quiet: on_a_terminal(80, quiet)], ids=["pipe", "terminal"])
def test_quiet_is_quiet(show) -> None:
    assert show("quiet") == ""
    with bars(quiet=True) as progress:
        assert progress is silent


def test_what_another_process_tells_is_heard() -> None:
    """The end of a stage always, and not every step before; nothing else is taken for it."""
    out = io.StringIO()
    told = Telling(out)
    for done in range(101):
        told("download", done, 100)
        told("sweep", done, 0)
    lines = out.getvalue().splitlines()
    found = [heard(line) for line in lines]
    assert ("download", 100, 100) in found and ("download", 0, 100) in found and len(lines) < 110
    assert heard(lines[0] + "\n") == heard(lines[0])
    for other in ("[lazymoe] dance 1/2", "[lazymoe] sweep 1/x", "sweep 1/2", f"[lazymoe] sweep {'9' * 40}/1", ""):
        assert heard(other) is None


def test_long_work_says_something_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("lazymoe.progress.time.monotonic", lambda: now[0])
    lines = _Lines(sys.stderr)
    for done in range(101):
        lines("route", done, 100)
        now[0] += SELDOM / 4.5
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "Computing routers: 0% of 100 layers" and told[-1] == "Computing routers: 100% of 100 layers"
    assert [line.split()[2] for line in told[:4]] == ["0%", "5%", "10%", "15%"]
    lines("route", 100, 100)
    assert not capsys.readouterr().err  # done is done


def test_a_stage_of_nothing_is_done_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as progress:
        progress("write", 0, 0)
        progress("measure", 1, 1)
    assert capsys.readouterr().err.splitlines()[1] == "Measuring: 100% of 1 model"


LOADING = """
import sys
from contextlib import nullcontext
from transformers import AutoModelForCausalLM
from lazymoe.progress import without_loading_bars
for way in (without_loading_bars, nullcontext):
    with way():
        AutoModelForCausalLM.from_pretrained(sys.argv[1])
    print("then", file=sys.stderr)
"""


def test_transformers_draws_no_bars_while_it_loads_a_model(demo_models: Path) -> None:
    drawn = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    command = [sys.executable, "-c", LOADING, str(demo_models / "base")]
    first, second, _ = subprocess.run(command, env=drawn, capture_output=True, text=True, check=True).stderr.split(
        "then"
    )
    assert "Loading weights" not in first
    assert "Loading weights" in second
