"""How fast is a merge of models that stay on the Hub? Against a plain download of the same ranges, many at once.

    python benchmarks/remote.py [--shape tinyllama-1.1b-half] [--rates 100 400] [--runs 3] [--fit]

Starts the loopback Hub of the tests, in a process of its own, which sends no more than so many MB a second; merges with
random routers and the base model's shared weights, each run a whole process, in turns with the download, which writes
what it reads to one file and does nothing else. Prints the medians, from the first range until all is on the disk, and
the peak of the merge's memory. With ``--fit`` the default recipe, which computes, against the download alone and the
same merge from folders alone: how much of the one goes on beside the other. Needs disk for the checkpoints and an
output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from merge import EXPERTS, SHAPES, make_checkpoint, make_recipe, measure

SERVER = Path(__file__).parents[1] / "tests" / "hub_server.py"
BASE = "acme/expert-0"
PLAIN = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import get_session
from lazymoe.hub.ahead import AT_ONCE, BLOCK
from lazymoe.planning.plan import Piece
from lazymoe.planning.prepared import prepare
plan = prepare(sys.argv[1], source="remote").sound_plan
ranges = []
for part in (part for output in plan.outputs for part in output.parts if isinstance(part, Piece)):
    lies, source = part.tensor.part(part.start, part.elements).span(), plan.sources[part.source]
    url = hf_hub_url(source.origin.name, lies.path.name, revision=source.revision)
    for begin in range(lies.offset, lies.offset + lies.nbytes, BLOCK):
        ranges.append((url, begin, min(begin + BLOCK, lies.offset + lies.nbytes)))
out = os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)
places = [sum(e - b for _, b, e in ranges[:i]) for i in range(len(ranges))]
def bring(place, url, begin, end):
    answer = get_session().get(url, headers={"Range": f"bytes={begin}-{end - 1}"}, timeout=60)
    assert len(answer.content) == end - begin
    os.pwrite(out, answer.content, place)
start = time.perf_counter()
with ThreadPoolExecutor(AT_ONCE) as pool:
    list(pool.map(bring, places, *zip(*ranges)))
os.fsync(out)
open(sys.argv[3], "w").write(f"{time.perf_counter() - start} 0")
"""
WATCHED = """
import sys, time
from lazymoe import cli
from lazymoe.hub import ahead
most, want, start, end = 0, ahead.Ahead._want, ahead.Ahead.__enter__, ahead.Ahead.__exit__
def watch(self, block):
    global most
    future = want(self, block)
    most = max(most, self._nbytes)
    return future
def enter(self):
    self.start = time.perf_counter()
    return start(self)
def leave(self, *exception):
    open(sys.argv[1], "w").write(f"{time.perf_counter() - self.start} {most}")
    return end(self, *exception)
ahead.Ahead._want, ahead.Ahead.__enter__, ahead.Ahead.__exit__ = watch, enter, leave
sys.exit(cli.main(sys.argv[2:]))
"""


def serve(folder: Path, rate: float) -> subprocess.Popen[str]:
    """Start a Hub that has the checkpoints, and let this process and its children know it."""
    repos = [f"--repo=acme/{path.name}={path}" for path in sorted(folder.iterdir())]
    command = [sys.executable, str(SERVER), f"--rate={rate}", *repos]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    found = re.search("HF_ENDPOINT=(.*)", server.stdout.readline())
    assert found
    os.environ["HF_ENDPOINT"] = found[1]
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b-half")
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 400], metavar="MB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--fit", action="store_true", help="the default recipe")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        for i in range(EXPERTS):
            make_checkpoint(folder / "models" / f"expert-{i}", SHAPES[options.shape], i)
        local = make_recipe(folder / "models", "fit")
        recipe: dict[str, Any] = {"base_model": BASE, "gate_mode": "random", "shared_weights": "base"}
        recipe["experts"] = [{"source_model": f"acme/expert-{i}"} for i in range(EXPERTS)]
        if options.fit:
            recipe = json.loads(local.read_text().replace(f"{folder / 'models'}/", "acme/"))
        local = local.rename(folder / local.name)  # beside the models it would be one
        file, out, told = folder / "recipe.yaml", folder / "out", folder / "held.txt"
        file.write_text(json.dumps(recipe))  # JSON is YAML
        os.environ["HF_HOME"] = str(folder / "home")
        merging = [sys.executable, "-c", WATCHED, str(told), "merge", str(file), str(out), "--source", "remote"]
        plain = [sys.executable, "-c", PLAIN, str(file), str(out), str(told)]
        how = "the default recipe" if options.fit else "random routers"
        print(f"{EXPERTS} experts of {options.shape}, {how}, median of {options.runs}")
        for rate in options.rates:
            server = serve(folder / "models", rate)
            try:
                if options.fit:
                    alone = [sys.executable, "-m", "lazymoe", "merge", str(local), str(out)]
                    overlap(merging, plain, alone, out, told, rate, options.runs)
                else:
                    compare(merging, plain, out, told, rate, options.runs)
            finally:
                server.kill()
                server.wait()


def compare(merging: list[str], plain: list[str], out: Path, told: Path, rate: float, runs: int) -> None:
    """Merge and download in turns, and print what came of it at one rate."""
    seconds: dict[str, list[float]] = {"LazyMoE": [], "download": []}
    memory = 0
    for _ in range(runs):
        measure(plain)
        seconds["download"].append(float(told.read_text().split()[0]))
        out.unlink()
        memory = max(memory, measure(merging)[1])
        took, held = map(float, told.read_text().split())
        seconds["LazyMoE"].append(took)
        size = sum(path.stat().st_size for path in out.iterdir())
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    for name, took in ((name, statistics.median(found)) for name, found in seconds.items()):
        print(f"{name:<10}{took:>7.1f} s{size / took / 1e6:>7.0f} of {rate:.0f} MB/s")
    print(f"memory {memory / 1e6:,.0f} MB, of it {held / 1e6:,.0f} MB that were read ahead\n", flush=True)


def overlap(
    merging: list[str], plain: list[str], alone: list[str], out: Path, told: Path, rate: float, runs: int
) -> None:
    """Download, merge from folders, and merge from the Hub in turns; print how much of the one is beside the other."""
    seconds: dict[str, list[float]] = {"download alone": [], "merge alone": [], "merge from the Hub": []}
    memory = 0
    for _ in range(runs):
        measure(plain)
        seconds["download alone"].append(float(told.read_text().split()[0]))
        out.unlink()
        seconds["merge alone"].append(measure(alone)[0])
        shutil.rmtree(out)
        took, most = measure(merging)
        seconds["merge from the Hub"].append(took)
        memory = max(memory, most)
        shutil.rmtree(out)
    down, own, both = (statistics.median(found) for found in seconds.values())
    for name, found in seconds.items():
        print(f"{name:<20}{statistics.median(found):>7.1f} s")
    beside = (down + own - both) / min(down, own)
    print(f"at {rate:.0f} MB/s {beside:.0%} of the shorter is beside the longer; memory {memory / 1e6:,.0f} MB\n")


if __name__ == "__main__":
    main()
