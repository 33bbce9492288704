"""What does it take to merge models on the Hub straight to the Hub? Network, disk and memory, of any size of model.

    python benchmarks/straight.py [--shape mistral-7b] [--layers 32] [--gate-mode random]

Four models of the shape, whose files are holes but for the beginning of each tensor, so that they take no room, on the
loopback Hub of the tests, which keeps of an upload no more than its size and hash. Merges them there with
``--source remote --to``, watches the disk, and prints it beside what `check` says; then merges them from the folders,
file by file, and compares the hashes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from merge import SHAPES, full_config, make_recipe, make_tokenizer, measure

from lazymoe.architectures.dense import LLAMA
from lazymoe.checkpoint.safetensors import open_file, write_header
from lazymoe.merging import carry_out
from lazymoe.output.shards import Taker
from lazymoe.planning.plan import Output
from lazymoe.planning.prepared import prepare
from lazymoe.units import gigabytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub_server import Hub

REPO, TICK = "writer/straight", 0.05
FILLED = 1 << 16  # bytes at the beginning of each tensor that are no hole


def make_sparse(folder: Path, config: dict[str, int], seed: int) -> None:
    """A checkpoint whose tensors are zero but for their beginnings."""
    full = full_config(config)
    backbone, ffn = LLAMA.all_shapes(LLAMA.complete(full))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(full))
    file, random = folder / "model.safetensors", np.random.default_rng(seed)
    header = write_header((name, "BF16", shape) for name, shape in (backbone | ffn).items())
    size = sum(2 * int(np.prod(shape)) for shape in (backbone | ffn).values())
    with open(file, "wb") as f:
        f.write(header)
        f.truncate(len(header) + size)
    with open(file, "r+b") as f:
        for tensor in open_file(file).values():
            lies = tensor.span()
            assert lies
            f.seek(lies.offset)
            values = random.standard_normal(min(FILLED, lies.nbytes) // 2).astype(np.float32) * 0.02
            f.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    make_tokenizer(folder)


class Forgetful(Hub):
    """A Hub that keeps the size and the hash of an upload, and gives its room back."""

    def forget(self) -> None:
        """Make holes of what was sent."""
        for path in (self.root / "large").iterdir():
            with self.lock:  # which is held while one is put together
                if path.stat().st_blocks:
                    size = path.stat().st_size
                    os.truncate(path, 0)
                    os.truncate(path, size)


class Hashes(Taker):
    """Takes files away by their hashes, name to SHA-256."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return False

    def take(self, path: Path, outputs: Sequence[Output]) -> None:
        with open(path, "rb") as f:
            self.found[path.name] = hashlib.file_digest(f, "sha256").hexdigest()
        path.unlink()


@contextlib.contextmanager
def watched(folder: Path, hub: Forgetful) -> Iterator[list[int]]:
    """Watch what a folder takes of the disk, at most; the Hub forgets meanwhile."""
    most, stopped = [0], threading.Event()

    def watch() -> None:
        while not stopped.wait(TICK):
            with contextlib.suppress(OSError):  # a file or folder that has just gone
                most[0] = max(most[0], sum(path.stat().st_blocks * 512 for path in folder.rglob("*")))
            hub.forget()

    thread = threading.Thread(target=watch)
    thread.start()
    yield most
    stopped.set()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mistral-7b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to take less time")
    parser.add_argument("--gate-mode", default="random")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    config = SHAPES[options.shape] | ({"num_hidden_layers": options.layers} if options.layers else {})
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name, Forgetful() as hub:
        folder = Path(name)
        for i in range(4):
            make_sparse(folder / f"expert-{i}", config, i)
            hub.add(f"acme/expert-{i}", folder / f"expert-{i}")
        file = make_recipe(folder, options.gate_mode)
        here, there = file.read_text(), folder / "there.yaml"
        there.write_text(here.replace(f"{folder}/", "acme/"))
        os.environ |= {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer",
                       "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        checking = [sys.executable, "-m", "lazymoe", "check", str(there), "--json"]
        ways = json.loads(subprocess.run(checking, capture_output=True, text=True).stdout)["ways"]
        [way] = (way for way in ways if way["source"] == "remote" and way["to_hub"])
        print(f"4 experts of {options.shape}, {config['num_hidden_layers']} layers, {options.gate_mode} routers")
        hub.sent.clear()
        with watched(folder / "work", hub) as most:
            arguments = ["merge", str(there), str(folder / "work"), "--source", "remote", "--to", REPO, "--quiet"]
            seconds, memory = measure([sys.executable, "-m", "lazymoe", *arguments])
        sent = sum(hub.sent.values())
        print(f"from the Hub {gigabytes(sent)} (check: {gigabytes(way['remote_bytes'])})")
        print(f"disk {gigabytes(most[0])} (check: {gigabytes(way['disk_bytes'])}), memory {gigabytes(memory)} "
              f"(check: {gigabytes(way['memory_bytes'])}), {seconds:.0f} s")  # fmt: skip
        local, start = Hashes(), time.perf_counter()
        carry_out(prepare(str(file)), folder / "local", taker=local)
        files: Any = hub.repos[REPO].commits[-1].files
        same = {name: files[name].oid for name in local.found} == local.found
        took = time.perf_counter() - start
        print(f"{'The same' if same else 'OTHER'} bytes as from the folders, which took {took:.0f} s")


if __name__ == "__main__":
    main()
