"""How fast and how small is a merge? Against `cp` of the same bytes, and against mergekit-moe.

    python benchmarks/merge.py [--mergekit VENV/bin/mergekit-moe] [--before CHECKOUT] [--shape tinyllama-1.1b]
                               [--runs 5]
    python benchmarks/merge.py --hosts [--shape tinyllama-1.1b] [--runs 3]

Makes synthetic bf16 checkpoints of a known shape, merges them with random routers, each run a whole process, in turns
with its rivals, and prints the medians. Then `hidden` routers, against a pass through the whole model; `fit` routers in
the base model's body, with what the fitting adds to the sweep; and the default recipe, which merges the body too. With
``--hosts``: every host, and LoRA experts, against `cp` alone.
Needs disk for the checkpoints and two outputs: 25 GB for TinyLlama's shape.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lazymoe.architectures.dense import LLAMA, PHI3
from lazymoe.architectures.hosts.mixtral import MIXTRAL
from lazymoe.architectures.records import Dense
from lazymoe.architectures.registry import HOSTS
from lazymoe.checkpoint.safetensors import write_header
from lazymoe.units import gigabytes

SHAPES = {
    "tinyllama-1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                       "num_attention_heads": 32, "num_key_value_heads": 4},
    "tinyllama-1.1b-half": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 11,
                            "num_attention_heads": 32, "num_key_value_heads": 4},
    "mistral-7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
EXPERTS = 4
MERGEKIT = {  # its own defaults, and what its documentation advises for small machines
    "mergekit-moe": [],
    "mergekit-moe, small": ["--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle"],
}
# A small process between: a child's peak memory on Linux begins with that of the process that started it.
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
WHOLE_PASS = """
import sys, torch, yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
recipe = yaml.safe_load(open(sys.argv[1]))
tokenizer = AutoTokenizer.from_pretrained(recipe["base_model"])
model = AutoModelForCausalLM.from_pretrained(recipe["base_model"], dtype=torch.bfloat16)
with torch.no_grad():
    for expert in recipe["experts"]:
        for prompt in expert["positive_prompts"]:
            model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True)
"""
SWEEPING = """
import sys, time
from lazymoe import cli
from lazymoe.computing import router_fit, sweep
spent = {"fit": 0.0, "sweep": 0.0}
def timed(module, name):
    call = getattr(module, name)
    def run(*arguments):
        start = time.perf_counter()
        result = call(*arguments)
        spent[name] += time.perf_counter() - start
        return result
    setattr(module, name, run)
timed(router_fit, "fit"), timed(sweep, "sweep")
assert cli.main(["merge", *sys.argv[1:3]]) == 0
rest = spent["sweep"] - spent["fit"]
told = f"Fitting took {spent['fit']:.1f} s, {spent['fit'] / rest:.1%} of the sweep's other {rest:.1f} s."
open(sys.argv[3], "w").write(told)
"""

OTHER = """
import sys
sys.path[0] = sys.argv[1]  # instead of the folder that this is typed in
from lazymoe.cli import main
sys.exit(main(sys.argv[2:]))
"""


def full_config(config: dict[str, int], dense: Dense = LLAMA) -> dict[str, Any]:
    """The config.json of a dense model of these sizes."""
    head = config["hidden_size"] // config["num_attention_heads"]
    plain = {"head_dim": head, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1, 3, 5],
             "hidden_size_per_layer_input": 0}  # fmt: skip
    plain = {key: value for key, value in plain.items() if key in dense.defaults or dense.kinds}
    return {
        "model_type": dense.model_type,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        **plain,
        **config,
    }


def make_checkpoint(folder: Path, config: dict[str, int], seed: int, dense: Dense = LLAMA) -> None:
    """A checkpoint of random bf16 weights, written in blocks."""
    full = full_config(config, dense)
    body, ffn = dense.all_shapes(dense.complete(full))
    shapes = body | ffn

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(full))
    block = (torch.from_numpy(np.random.default_rng(seed).standard_normal(1 << 24, np.float32)) * 0.02).bfloat16()
    data = memoryview(block.view(torch.uint8).numpy())  # type: ignore[arg-type]
    with open(folder / "model.safetensors", "wb") as f:
        f.write(write_header((name, "BF16", shape) for name, shape in shapes.items()))
        for shape in shapes.values():
            left = 2 * int(np.prod(shape))
            while left:
                left -= f.write(data[: min(left, len(data))])
    make_tokenizer(folder)


def make_adapter(folder: Path, config: dict[str, int], rank: int = 16) -> None:
    """A LoRA adapter on a Llama's feed-forward networks."""
    sizes = {"gate": ("intermediate_size", "hidden_size"), "down": ("hidden_size", "intermediate_size")}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for role in ("gate", "up", "down"):
            rows, columns = (config[key] for key in sizes["down" if role == "down" else "gate"])
            name = f"base_model.model.model.layers.{layer}.mlp.{role}_proj"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns).bfloat16() * 0.01
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, rank).bfloat16() * 0.01
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))


def make_tokenizer(folder: Path) -> None:
    """Bytes as tokens: mergekit-moe loads a tokenizer whatever the gate mode."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", "</s>", *letters])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def make_recipe(folder: Path, gate_mode: str, tokens: int = 25, **fields: str) -> Path:
    """A recipe with five prompts of so many tokens for each expert, and with these other fields."""
    topics = ("A question about cooking", "def function", "Once upon a time", "The sum of two and")
    experts = []
    for i, topic in enumerate(topics):
        prompts = [f"{n} {topic * tokens}"[:tokens] for n in range(5)]  # a letter is a token
        experts.append({"source_model": str(folder / f"expert-{i}"), "positive_prompts": prompts})
    recipe: dict[str, Any] = {
        "base_model": str(folder / "expert-0"),
        "gate_mode": gate_mode,
        "dtype": "bfloat16",
        "experts": experts,
        **fields,
    }
    file = folder / f"{gate_mode}.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return file


def compare_hosts(folder: Path, config: dict[str, int], runs: int) -> None:
    """Every host from the first dense architecture that it takes, and those whose tensors are cut or computed."""
    cases = [(host, host.takes[0], False) for host in HOSTS]
    cases[1:1] = [(MIXTRAL, PHI3, False), (MIXTRAL, LLAMA, True)]
    print(f"{EXPERTS} experts, random routers, median of {runs}")
    print(f"{'':<34}{'bytes':>9}{'LazyMoE':>9}{'cp':>9}{'ratio':>7}{'memory':>9}")
    for host, dense, adapted in cases:
        models = folder / "models"
        for i in range(1 if adapted else EXPERTS):
            make_checkpoint(models / f"expert-{i}", config, i, dense)
        experts = [str(models / f"expert-{i}") for i in range(EXPERTS)]
        if adapted:
            for i in range(EXPERTS):
                make_adapter(models / f"adapter-{i}", config)
            experts = [f"{models}/expert-0+{models}/adapter-{i}" for i in range(EXPERTS)]
        recipe: dict[str, Any] = {"base_model": str(models / "expert-0"), "gate_mode": "random", "dtype": "bfloat16"}
        recipe |= {"architecture": host.name, "experts": [{"source_model": name} for name in experts]}
        recipe |= {"shared_experts": recipe["experts"][:1]} if host.shared else {}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        out, copy = folder / "out", folder / "copy"
        merging = [sys.executable, "-m", "lazymoe", "merge", str(folder / "recipe.yaml"), str(out)]
        measure(merging)
        size = sum(p.stat().st_size for p in out.iterdir())
        os.replace(out, copy)
        found = compare({"LazyMoE": merging, "cp": ["cp", "-r", str(copy), str(out)]}, out, runs)
        (seconds, memory), (cp, _) = found["LazyMoE"], found["cp"]
        more = (" with LoRA" if adapted else "") + (", shared" if host.shared else "")
        name = f"{host.name} from {dense.model_type}{more}"
        figures = f"{gigabytes(size):>9}{seconds:>8.1f}s{cp:>8.1f}s{seconds / cp:>7.2f}{gigabytes(memory):>9}"
        print(f"{name:<34}{figures}", flush=True)
        shutil.rmtree(copy)
        shutil.rmtree(models)


def measure(command: list[str], leftover: Path | None = None) -> tuple[float, int]:
    """Run a command as a process of its own; wall time in seconds and peak memory in bytes. Removes what it made."""
    seconds, _, memory = spend(command)
    if leftover:
        shutil.rmtree(leftover)
    return seconds, memory


def spend(command: list[str]) -> tuple[float, float, int]:
    """Run a command as a process of its own; wall and processors' time in seconds, and peak memory in bytes."""
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    worked, seconds, memory = done.stdout.split()[-3:]
    return float(seconds), float(worked), int(memory) * (1 if sys.platform == "darwin" else 1024)


def compare(rivals: dict[str, list[str]], out: Path, runs: int) -> dict[str, tuple[float, int]]:
    """Median time and largest memory of each rival; they take turns, so that a slow minute hits them all."""
    os.sync()  # or the first of them would wait for what was written before
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in rivals}
    for _ in range(runs):
        for name, command in rivals.items():
            found[name].append(measure(command, out))
            os.sync()
    return {name: (statistics.median(t for t, _ in rows), max(m for _, m in rows)) for name, rows in found.items()}


def table(found: dict[str, tuple[float, int]], unit: str) -> None:
    seconds, memory = found["LazyMoE"]
    print(f"{'':<24}{'seconds':>9}{'memory':>10}{'time':>12}{'memory':>12}   (LazyMoE = 1)")
    for name, (t, m) in found.items():
        print(f"{name:<24}{t:>9.1f}{gigabytes(m):>10}{t / seconds:>12.2f}{m / memory:>12.2f}")
    print(f"{unit}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", metavar="PATH", help="mergekit-moe, in a virtual environment of its own")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--before", metavar="PATH", help="another checkout of LazyMoE, for the default recipe")
    parser.add_argument("--hosts", action="store_true", help="compare every host with cp instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        if options.hosts:
            compare_hosts(folder, SHAPES[options.shape], options.runs)
            return
        for i in range(EXPERTS):
            make_checkpoint(folder / f"expert-{i}", SHAPES[options.shape], i)
        lazymoe = [sys.executable, "-m", "lazymoe", "merge"]
        mergekit = {name: [options.mergekit, *flags] for name, flags in MERGEKIT.items() if options.mergekit}

        recipe, out, copy = str(make_recipe(folder, "random")), folder / "out", folder / "copy"
        subprocess.run([*lazymoe, recipe, str(out)], check=True, capture_output=True)
        size = sum(p.stat().st_size for p in out.iterdir())
        os.replace(out, copy)
        rivals = {"LazyMoE": [*lazymoe, recipe, str(out)], "cp": ["cp", "-r", str(copy), str(out)]}
        rivals |= {name: [command[0], recipe, str(out), *command[1:]] for name, command in mergekit.items()}
        print(f"{EXPERTS} experts of {options.shape}, random routers: {gigabytes(size)}, {options.runs} runs")
        found = compare(rivals, out, options.runs)
        table(found, f"LazyMoE may take 1.2 x cp + 3 s = {1.2 * found['cp'][0] + 3:.1f} s")
        shutil.rmtree(copy)

        recipe = str(make_recipe(folder, "hidden"))
        rivals = {"LazyMoE": [*lazymoe, recipe, str(out)]}
        rivals |= {name: [command[0], recipe, str(out), *command[1:]] for name, command in list(mergekit.items())[1:]}
        print(f"{EXPERTS} experts of {options.shape}, hidden routers, {EXPERTS * 5} prompts")
        found = compare(rivals, out, 1)
        found["whole-model pass alone"] = measure([sys.executable, "-c", WHOLE_PASS, recipe])
        table(found, "A layer-streamed pass in float32; the whole-model pass is in bfloat16.")

        for name, fields in (("fitted routers", {"shared_weights": "base"}), ("the default recipe", {})):
            recipe = str(make_recipe(folder, "fit", 80, **fields))
            print(f"{EXPERTS} experts of {options.shape}, {name}, 400 tokens for each expert")
            told = folder / "told.txt"
            found = {"LazyMoE": measure([sys.executable, "-c", SWEEPING, recipe, str(out), str(told)], out)}
            if options.before and not fields:
                other = [sys.executable, "-c", OTHER, options.before, "merge", recipe, str(out)]
                found["the other checkout"] = measure(other, out)
            table(found, told.read_text())


if __name__ == "__main__":
    main()
