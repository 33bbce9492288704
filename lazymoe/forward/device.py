"""Where to compute."""

from __future__ import annotations

from lazymoe.errors import error


def pick_device(device: str | None) -> str:
    """A CUDA device if there is one and nothing else is asked for.

    Raises:
        LazyMoEError: if what is asked for isn't there.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # no such word, no such device, or none of that kind
        here = "'cuda' and 'cpu'" if torch.cuda.is_available() else "'cpu'"
        raise error("input.device", "device", f"there is no '{device}' here", f"Here are {here}.") from None
    return device
