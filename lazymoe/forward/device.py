"""Where to compute."""

from __future__ import annotations

from lazymoe.errors import error


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
