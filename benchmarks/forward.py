"""How fast is the generic host? Forward passes of the same weights as a `generic_moe` and as transformers' own Mixtral.

    python benchmarks/forward.py [--layers 4] [--hidden 1024] [--experts 4] [--dtype float32] [--repeat 7]

A random Llama of these sizes becomes both. Prints the median processor time, on one thread, of each for a text of 512
tokens, for eight of 64, and for one more token after 512, turn by turn, and how many times Mixtral's that is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lazymoe import Recipe, merge

HOSTS = ("generic", "mixtral")


def mixtures(folder: Path, options: argparse.Namespace) -> list[torch.nn.Module]:
    """The same experts in both hosts."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers, num_attention_heads=options.hidden // 64, num_key_value_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).save_pretrained(folder / "dense")
    expert = {"source_model": str(folder / "dense")}
    made = []
    for host in HOSTS:
        fields = {"architecture": host, "gate_mode": "random", "experts": [expert] * options.experts}
        merge(Recipe.model_validate({"base_model": str(folder / "dense"), **fields}), folder / host)
        made.append(AutoModelForCausalLM.from_pretrained(folder / host, dtype="auto", trust_remote_code=True).eval())
    return made


def passes(model: torch.nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed, by what it is called."""
    ids = torch.randint(8192, (8, 512), generator=torch.Generator().manual_seed(1))
    before = model(ids[:1], use_cache=True).past_key_values

    def one_more() -> torch.Tensor:
        made = model(ids[:1, :1], past_key_values=before).logits
        before.crop(-1)
        return made

    return {
        "one text of 512 tokens": lambda: model(ids[:1], use_cache=False).logits,
        "eight texts of 64": lambda: model(ids[:, :64], use_cache=False).logits,
        "one more token": one_more,
    }


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time forward passes of the generic host against Mixtral's.")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeat", type=int, default=7, help="times that each pass is run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ways = [passes(model) for model in mixtures(Path(folder), options)]
        print("| | generic_moe | mixtral | times |\n|---|--:|--:|--:|")
        for name in ways[0]:
            taken: list[list[float]] = [[] for _ in ways]
            found = [way[name]() for way in ways]  # not timed: the first is slower
            assert torch.allclose(*found, atol=0.1), "they aren't the same"
            for _ in range(options.repeat):
                for way, times in zip(ways, taken, strict=True):
                    start = time.process_time()
                    way[name]()
                    times.append(time.process_time() - start)
            generic, mixtral = map(statistics.median, taken)
            print(f"| {name} | {generic * 1000:.0f} ms | {mixtral * 1000:.0f} ms | {generic / mixtral:.2f} |")


if __name__ == "__main__":
    main()
