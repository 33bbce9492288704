"""What do 4 and 8 bit lose, and what do they save? Ways to pack a mixture's layers, on the same mixture and texts.

    python benchmarks/packing.py BASE EXPERT=TEXTS EXPERT=TEXTS ... [--tokens 1536] [--only WORD]

Models and texts are those of `router.py`; the mixture is LazyMoE's default, its routers made from five sentences (the
files TEXTS.prompts.txt, or the first set). Rows of `lazymoe.load` are that function's: "memory" is what the process
grew by at most while it loaded, against the size of the files; other rows are computed by packing and unpacking the
weights of a loaded mixture. "Bits" is the mean over the layers' matrices, "mean loss" that of the held-out texts.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

logging.disable(logging.WARNING)

import torch  # noqa: E402
from bitsandbytes import functional  # noqa: E402
from router import Batches, read_domain, recipe_of  # noqa: E402
from torch import Tensor  # noqa: E402

from lazymoe import load, merge  # noqa: E402
from lazymoe.checkpoint.opening import open_source  # noqa: E402
from lazymoe.forward.packing import ATTENTION, Unpack  # noqa: E402
from lazymoe.forward.tokens import load_tokenizer, windows  # noqa: E402
from lazymoe.recipe.reference import Reference  # noqa: E402
from lazymoe.units import gigabytes  # noqa: E402

PEAK = Path(__file__).with_name("load_peak.py")
FACTORS = (1.0, 0.95, 0.9, 0.85)  # of a block's largest weight: the scales that a search tries
Packed = tuple[Tensor, float]  # what is left of a matrix, and the bits that a weight took


def four(weight: Tensor, block: int = 32, twice: bool = True, kind: str = "nf4") -> Packed:
    """bitsandbytes' 4 bit, with blocks of this size, their scales in 8 bit (`twice`) or 32."""
    packed = functional.quantize_4bit(weight, blocksize=block, compress_statistics=twice, quant_type=kind)
    return functional.dequantize_4bit(*packed), 4 + (8 + 32 / 256 if twice else 32) / block


def searched(weight: Tensor, block: int = 32) -> Packed:
    """NF4 with the scale of least squared error for each block."""
    code = functional.get_4bit_type("nf4", device="cpu")
    blocks = weight.float().reshape(-1, block)
    largest = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    tried = []
    for factor in FACTORS:
        scaled = torch.bucketize(blocks / (factor * largest), (code[1:] + code[:-1]) / 2)
        tried.append(code[scaled] * factor * largest)
    errors = torch.stack([((t - blocks) ** 2).sum(1) for t in tried])  # [F, blocks]
    best = torch.stack(tried)[errors.argmin(0), torch.arange(len(blocks))]
    return best.view_as(weight).to(weight.dtype), 4 + (8 + 32 / 256) / block


def eight(weight: Tensor) -> Packed:
    packed = functional.quantize_blockwise(weight, blocksize=256)
    return functional.dequantize_blockwise(*packed), 8 + 32 / 256


def sixteen(weight: Tensor) -> Packed:
    return weight, 16


def attention(name: str) -> bool:
    return name.split(".")[3] in ATTENTION


# ways to pack: what is done to a matrix of this name
WAYS: dict[str, Callable[[str, Tensor], Packed]] = {
    "all NF4, blocks of 64 (bitsandbytes' default)": lambda name, w: four(w, 64, False),
    "all FP4, blocks of 64": lambda name, w: four(w, 64, False, "fp4"),
    "all NF4, blocks of 64, scales in 8 bit": lambda name, w: four(w, 64),
    "all NF4, blocks of 32, scales in 8 bit": lambda name, w: four(w),
    "the same, scales by search": lambda name, w: searched(w),
    "experts NF4 64, attention 8 bit": lambda name, w: eight(w) if attention(name) else four(w, 64),
    "experts NF4 32, attention 16 bit": lambda name, w: sixteen(w) if attention(name) else four(w),
    "the chosen, scales by search": lambda name, w: eight(w) if attention(name) else searched(w),
    "all NF4 32, down_proj 8 bit": lambda name, w: eight(w) if "down_proj" in name else four(w),
    "all NF4 32, first and last two layers 8 bit": lambda name, w: eight(w) if outermost(name) else four(w),
}
LAYERS: list[int] = []


def outermost(name: str) -> bool:
    return int(name.split(".")[2]) in (*LAYERS[:2], *LAYERS[-2:])


@torch.no_grad()
def losses(model: Any, batches: Batches) -> list[float]:
    """Mean loss per token of each domain."""
    found = []
    for ids, real in batches:
        logits = (model(row[there][None]).logits[0] for row, there in zip(ids, real, strict=True))  # [T, V]
        pairs = zip(logits, (row[there] for row, there in zip(ids, real, strict=True)), strict=True)
        lost = [torch.nn.functional.cross_entropy(x[:-1].float(), y[1:], reduction="sum").item() for x, y in pairs]
        found.append(sum(lost) / int(real[:, 1:].sum()))
    return found


def matrices(model: Any, experts: int) -> dict[str, Any]:
    """What a way may pack, by name: what `lazymoe.load` packs too."""
    named = model.named_parameters()
    return {n: p for n, p in named if ".layers." in n and p.dim() > 1 and p.shape[-2] > experts}


@torch.no_grad()
def otherwise(folder: Path, experts: int, only: str, batches: Batches) -> Iterator[tuple[str, float, list[float]]]:
    model, _ = load(folder, device="cpu")
    kept = {name: p.data.clone() for name, p in matrices(model, experts).items()}
    LAYERS[:] = range(model.config.num_hidden_layers)
    for way, pack in WAYS.items():
        if only not in way:
            continue
        bits = 0.0
        for name, parameter in matrices(model, experts).items():
            parameter.data, taken = pack(name, kept[name])
            bits += taken * parameter.numel()
        yield way, bits / sum(w.numel() for w in kept.values()), losses(model, batches)


def mean_bits(model: Any, whole: int) -> float:
    """Bits a weight takes in the layers' matrices of a model that `lazymoe.load` packed, states included."""
    states = [m.state for m in model.modules() if isinstance(m, Unpack)]
    packed = sum(p.nbytes for p in model.parameters() if p.dtype == torch.uint8)
    scales = sum(s.absmax.nbytes + (s.state2.absmax.nbytes if s.nested else 0) for s in states)
    return 8 * (packed + scales) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("experts", metavar="EXPERT=TEXTS", nargs="+")
    parser.add_argument("--tokens", type=int, default=1536, help="held-out tokens of each domain")
    parser.add_argument("--only", metavar="WORD", default="", help="of the ways that aren't LazyMoE's, those with this")
    options = parser.parse_args()
    experts, texts = zip(*(pair.split("=", 1) for pair in options.experts), strict=True)
    base = open_source(Reference.parse(options.base), "BASE")
    domains = [read_domain(base, t) for t in texts]
    batches = [windows(load_tokenizer(base), [held], options.tokens) for held, _ in domains]
    chosen = [sets.get("prompts") or next(iter(sets.values())) for _, sets in domains]
    names = [Path(e).name for e in experts]

    def show(name: str, bits: float, lost: Sequence[float], memory: str = "") -> None:
        cells = [name, f"{bits:.2f}", memory, f"{sum(lost) / len(lost):.3f}", *(f"{loss:.3f}" for loss in lost)]
        print("| " + " | ".join(cells) + " |", flush=True)

    with tempfile.TemporaryDirectory(prefix="lazymoe-") as temporary:
        made = merge(recipe_of(options.base, experts, chosen), Path(temporary) / "moe", device="cpu")
        print(f"{gigabytes(made.plan.nbytes)} of weights\n")
        print("| layers' matrices | bits | memory | mean loss | " + " | ".join(names) + " |")
        print("|---|--:|--:|--:|" + "--:|" * len(names))
        whole = 0
        for bits in (None, 8, 4):
            run = [sys.executable, str(PEAK), str(made.folder), str(bits or 0)]
            peak = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
            model, _ = load(made.folder, bits, device="cpu")  # type: ignore[arg-type]
            whole = whole or sum(p.numel() for p in matrices(model, made.plan.experts).values())
            taken = mean_bits(model, whole) if bits else 16.0
            show(f"**lazymoe.load, bits={bits}**", taken, losses(model, batches), gigabytes(peak))
            del model
        for way, taken, lost in otherwise(made.folder, made.plan.experts, options.only, batches):
            show(way, taken, lost)


if __name__ == "__main__":
    main()
