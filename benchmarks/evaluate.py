"""How long does an evaluation take, and how much memory? Against lm-eval's own model of transformers, loaded whole.

    python benchmarks/evaluate.py [--shape tinyllama-1.1b] [--questions 4] [--limit 5000000000]

Merges four experts of a known shape in bf16 (one synthetic checkpoint, four times) and asks the mixture questions with
four choices each, and how likely texts are; every run is a process of its own. "limited" runs have no more memory for
data than --limit, in bytes, which the loaded model must exceed. Needs disk for a checkpoint and the mixture: 9 GB for
TinyLlama's shape.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from merge import EXPERTS, SHAPES, make_checkpoint, make_tokenizer

from lazymoe.units import gigabytes

# as merge.py's, a small process between, but that tells the processors' time too, which other programs don't change
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
STREAMED = """
import sys, lazymoe
print(lazymoe.evaluate(sys.argv[1], sys.argv[2], models="mixture", device="cpu"))
"""
LOADED = """
import sys
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lazymoe.evaluating.tasks import load_rows
model = HFLM(pretrained=sys.argv[1], device="cpu", batch_size=8)
tasks = [task for row in load_rows(sys.argv[2].split(","), {}) for task in row.tasks]
print(simple_evaluate(model=model, tasks=tasks, bootstrap_iters=0)["results"])
"""
WORDS = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")


def make_questions(folder: Path, count: int) -> str:
    """Files of questions with choices and of open ones, in words that mean nothing."""
    chance = random.Random(0)

    def words(n: int) -> str:
        return " ".join(chance.choices(WORDS, k=n))

    closed = [{"question": words(30), "choices": [words(8) for _ in range(4)], "answer": 0} for _ in range(count)]
    opened = [{"question": words(30), "answer": words(20)} for _ in range(count)]
    for name, lines in (("closed", closed), ("opened", opened)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return f"{folder}/closed.jsonl,{folder}/opened.jsonl"


def measure(code: str, *arguments: str, cache: Path, limit: int = 0) -> str:
    """Run code in a process of its own: what it took, or what it failed with."""

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        preexec_fn=confine if limit else None,
    )  # fmt: skip
    if done.returncode:
        return f"fails: {(done.stderr.strip().splitlines() or ['killed'])[-1][:100]}"
    seconds, busy, memory = map(float, done.stdout.split())
    return f"{seconds:.1f} s, {busy:.1f} s of processors, {gigabytes(1024 * int(memory))} of memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--questions", type=int, default=4, help="of each kind")
    parser.add_argument("--limit", type=int, default=5_000_000_000, help="bytes of memory, for the limited runs")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        make_checkpoint(folder / "model", SHAPES[options.shape], 0)
        make_tokenizer(folder / "model")
        recipe = {"base_model": str(folder / "model"), "gate_mode": "random", "dtype": "bfloat16"}
        experts = [{"source_model": str(folder / "model")}] * EXPERTS
        (folder / "recipe.yaml").write_text(json.dumps({**recipe, "experts": experts}))
        merge = [sys.executable, "-m", "lazymoe", "merge", str(folder / "recipe.yaml"), str(folder / "moe")]
        subprocess.run(merge, check=True, capture_output=True)
        size = sum(path.stat().st_size for path in (folder / "moe").glob("*.safetensors"))
        tasks = make_questions(folder, options.questions)
        print(f"{EXPERTS} experts of {options.shape}, {gigabytes(size)}, {options.questions} questions of each kind")
        for limit in (0, options.limit):
            for i, (who, code) in enumerate({"streamed": STREAMED, "loaded": LOADED}.items()):
                said = measure(code, str(folder / "moe"), tasks, cache=folder / f"cache-{limit}-{i}", limit=limit)
                print(f"{who}{f', limited to {gigabytes(limit)}' if limit else ''}: {said}", flush=True)


if __name__ == "__main__":
    main()
