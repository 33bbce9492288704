"""Where to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lazymoe.errors import error

if TYPE_CHECKING:
    from torch import nn

COARSE = "medium"  # as torch names it: products of float32 as of bfloat16, or of TF32, where a processor has these


def pick_device(device: str | None) -> str:
    """Choose a device: a CUDA device if there is one and nothing else is asked for.

    Args:
        device: as torch names it; None for the choice.

    Raises:
        LazyMoEError: if what is asked for isn't there.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # no such word, no such device, or none of that kind
        known = "'cuda' or 'cpu'" if torch.cuda.is_available() else "'cpu'"
        raise error(
            "input.device", "device", f"there is no '{device}' here", f"Use {known}, or leave it out."
        ) from None
    return device


@contextmanager
def coarsely() -> Iterator[None]:
    """Let products of float32 matrices be as exact as those of a model in 16 bit, which is faster on some processors.

    For what needs no more: sums stay in float32.
    """
    with _precision(COARSE):
        yield


@contextmanager
def exactly() -> Iterator[None]:
    """Let products of float32 matrices be as exact as they can, inside of `coarsely` too: for what is inverted."""
    with _precision("highest"):
        yield


@contextmanager
def halved(network: nn.Module) -> Iterator[None]:
    """Let a network be in bfloat16, inside of `coarsely`, where a processor multiplies that but has no tiles, without
    which torch doesn't multiply float32 as that.

    Args:
        network: in float32, without weights as yet.
    """
    import torch

    coarse = torch.get_float32_matmul_precision() != "highest"
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    if not (coarse and on_cpu and _has("avx512_bf16") and not _has("amx_tile")):
        yield
        return
    network.to(torch.bfloat16)
    try:
        yield
    finally:
        network.to(torch.float32)


def _has(instructions: str) -> bool:
    """Tell whether the processor has some instructions; no if this torch can't tell."""
    import torch

    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", bool)())


@contextmanager
def _precision(name: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
