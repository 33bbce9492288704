"""What does quantizing cost, and what is an importance matrix worth? Losses of GGUF files beside the 16-bit mixture's.

    python benchmarks/gguf_quality.py BASE EXPERT=TEXTS ... [--types Q2_K,Q4_K_M] [--tokens 1024] [--widen]
    python benchmarks/gguf_quality.py --demo

TEXTS.prompts.txt beside it has the expert's prompts, a JSON string a line, and TEXTS.held.txt the text
that is measured on. Makes the mixture, its files with an importance matrix of these prompts and without, and asks
llama.cpp for the loss of each. --widen makes the models' widths multiples of 256 first, by zeros: they compute the
same, and K-quants are what they are in larger models. --demo trains the demo's models at a width of 256 instead. What
F16 writes is held against transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from lazymoe import Recipe, merge, to_gguf
from lazymoe.checkpoint.opening import open_folder
from lazymoe.demonstration import models as demo
from lazymoe.forward.llama import Told, tell
from lazymoe.forward.losses import mixture_told
from lazymoe.forward.tokens import load_tokenizer, windows
from lazymoe.progress import silent
from lazymoe.quantizing.file_types import UNWEIGHTED
from lazymoe.units import gigabytes

BLOCK = 256  # weights of a K-quant
PROMPT, WRITTEN = 32, 32  # tokens of a prompt, and of what is written after it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("experts", nargs="*", metavar="EXPERT=TEXTS")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--types", default="Q2_K,Q3_K_M,Q4_K_M")
    parser.add_argument("--tokens", type=int, default=1024, help="of each domain's text")
    parser.add_argument("--widen", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    kinds = options.types.split(",")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        if options.demo:
            models, prompts, held = trained(folder / "models")
        else:
            pairs = [pair.rpartition("=")[::2] for pair in options.experts]
            models = [options.base, *(Path(expert) for expert, _ in pairs)]
            prompts = [list(map(json.loads, Path(f"{t}.prompts.txt").read_text().splitlines())) for _, t in pairs]
            held = [Path(f"{text}.held.txt").read_text() for _, text in pairs]
        if options.widen:
            models = [widened(model, folder / f"model-{i}") for i, model in enumerate(models)]
        experts = [{"source_model": str(m), "positive_prompts": p} for m, p in zip(models[1:], prompts, strict=True)]
        recipe = Recipe.model_validate({"base_model": str(models[0]), "experts": experts})
        plan = merge(recipe, folder / "moe").plan
        source = open_folder(folder / "moe")
        batches = [windows(load_tokenizer(source), [text], options.tokens) for text in held]
        exact = mixture_told(plan, source, batches, "cpu")
        texts = [row[real].numpy() for ids, reals in batches for row, real in zip(ids, reals, strict=True)]
        print(f"{'':<12}{'matrix':>8}{'size':>10}{'loss':>9}{'more':>9}{'apart':>9}{'same':>8}")
        whole = Told(*(np.concatenate(column) for column in zip(*exact, strict=True)))
        print(f"{'transformers':<12}{'':>8}{gigabytes(plan.nbytes):>10}{-whole.known.mean():>9.4f}")
        for kind in ("F16", *kinds):
            for weighted in (False, True) if kind not in UNWEIGHTED else (False,):
                [file] = to_gguf(folder / "moe", kind, folder / "out", imatrix=weighted).files[kind]
                found = tell(file, texts)
                more = float((whole.known - found.known).mean())
                apart, same = np.abs(whole.known - found.known).mean(), (whole.best == found.best).mean()
                size, matrix = gigabytes(file.stat().st_size), "yes" if weighted else ""
                row = f"{-found.known.mean():>9.4f}{more:>+9.4f}{apart:>9.4f}{same:>8.1%}"
                print(f"{kind:<12}{matrix:>8}{size:>10}{row}", flush=True)
                if kind == "F16":
                    compare_writing(folder / "moe", file, texts)
                file.unlink()


def trained(folder: Path) -> tuple[list[Path], list[list[str]], list[str]]:
    """Train the demo's models at a width of 256: their folders, each expert's prompts, and its held-out text."""
    demo.MODEL |= {"hidden_size": BLOCK, "intermediate_size": 4 * BLOCK}
    demo.train_all(folder, silent)
    kinds = demo.domains()
    return (
        [folder / "base", *(folder / k.name for k in kinds)],
        [list(k.prompts) for k in kinds],
        [k.held for k in kinds],
    )


def compare_writing(moe: Path, file: Path, texts: Sequence[np.ndarray]) -> None:
    """Write greedily after the beginning of each text with transformers, and ask llama.cpp whether it would have."""
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32).eval()
    same = []
    for text in texts[:: max(1, len(texts) // 6)]:
        asked = torch.tensor(text[None, :PROMPT])
        with torch.no_grad():
            written = model.generate(asked, max_new_tokens=WRITTEN, do_sample=False)[0].numpy()
        chosen = tell(file, [written]).best[len(asked[0]) - 1 :]
        same.append(bool((chosen == written[len(asked[0]) :]).all()))
    print(f"greedy text of {WRITTEN} tokens is transformers' after {sum(same)} of {len(same)} prompts", flush=True)


def widened(model: Path, folder: Path) -> Path:
    """Copy a Llama with zeros to widths that K-quants' blocks divide; it computes the same."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    hidden, heads, groups = (config[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head = config.get("head_dim") or hidden // heads
    wide = math.ceil(hidden / BLOCK) * BLOCK
    more = math.ceil(wide / head / (heads // groups)) * (heads // groups)  # heads, in whole groups
    sizes = {hidden: wide, heads * head: more * head, groups * head: more * groups // heads * head}
    assert more * head % BLOCK == 0 and config["intermediate_size"] % BLOCK == 0
    source, tensors = open_folder(model), {}
    for name, info in source.tensors.items():
        given = source.load(name).float()
        shape = [
            sizes.get(n, n) if name.count(".") > 2 or i == given.dim() - 1 else n for i, n in enumerate(info.shape)
        ]
        tensors[name] = torch.zeros(shape)
        tensors[name][tuple(map(slice, info.shape))] = given * (math.sqrt(hidden / wide) if given.dim() == 1 else 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config |= {"hidden_size": wide, "num_attention_heads": more, "num_key_value_heads": more * groups // heads}
    config |= {"head_dim": head, "rms_norm_eps": config["rms_norm_eps"] * hidden / wide, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
