"""The routing of a mixture as a picture: which expert the texts of each domain go to, and what each layer does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = "cividis"  # even in lightness, and the same to the colour-blind
LIGHT = {"page": "#ffffff", "ink": "#1f2328"}
DARK = {"page": "#0d1117", "ink": "#e6edf3"}
LONGEST = 24  # letters of a name
ACROSS = 52  # letters of all names that fit below the map
MANY = 10  # experts from which on their figures are small


def draw(names: Sequence[str], first: Sequence[Sequence[Sequence[float]]], dark: bool = False) -> bytes:
    """Draw the picture as PNG: a map of the domains, framed where they meet their own experts, and one of the layers.

    Args:
        names: of the experts ``[E]``, which are the domains' names too.
        first: of a domain's tokens, what part had each expert as their first choice ``[L][D][E]``, of 0 to 1.
        dark: for a dark page.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    theme, n = DARK if dark else LIGHT, len(names)
    shares, load = np.array(first).mean(0), np.array(first).mean(1)  # [D, E], [L, E]
    short = [_short(name) for name in names]
    figure = Figure(figsize=(7.6, 3.4 + 0.62 * n), dpi=110, facecolor=theme["page"], layout="constrained")
    figure.suptitle(sentence(names, shares), color=theme["ink"], fontsize=9.5, weight="bold", x=0.01, ha="left",
                    parse_math=False)  # fmt: skip
    above, below = figure.subplots(2, 1, height_ratios=[0.8 + 0.4 * n, 0.5 + 0.2 * n])
    _map(above, shares, theme)
    above.set_title("Where each domain's tokens go first", color=theme["ink"], fontsize=10, loc="left")
    above.set_ylabel("texts of", color=theme["ink"])
    above.set_yticks(range(n), [f"{name}  {i}" for i, name in enumerate(short, 1)], parse_math=False)
    fits = n * max(map(len, short)) <= ACROSS  # else the rows tell whose number it is
    above.set_xticks(range(n), [f"{i}  {short[i - 1]}" if fits else i for i in range(1, n + 1)], parse_math=False)
    above.set_xlabel("expert", color=theme["ink"])
    _figures(above, shares)
    _frame(above, n, theme)
    image = _map(below, load.T, theme)
    _part(below, load.T.shape[0], theme)
    if len(load) <= MANY:
        _figures(below, load.T)
    below.set_title("What each expert gets, layer by layer", color=theme["ink"], fontsize=10, loc="left")
    below.set_ylabel("expert", color=theme["ink"])
    below.set_yticks(range(n), [str(i) for i in range(1, n + 1)])
    below.set_xlabel("layer", color=theme["ink"])
    below.xaxis.get_major_locator().set_params(integer=True)
    bar = figure.colorbar(image, ax=[above, below], format=lambda x, _: f"{x:.0%}", pad=0.02, aspect=40)
    bar.set_label("of the tokens", color=theme["ink"])
    bar.ax.tick_params(colors=theme["ink"], length=0)
    bar.outline.set_visible(False)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks gets boxes
        figure.savefig(data, format="png", facecolor=theme["page"], metadata={"Software": None})
    return data.getvalue()


def sentence(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    """Say what part of the domains' tokens go to their own experts: the mean, and the worst.

    Args:
        names: of the experts ``[E]``.
        shares: of each domain's tokens, what part had each expert as their first choice ``[D, E]``.
    """
    own = np.diag(shares)
    least = int(own.argmin())
    said = f"{own.mean():.0%} of the tokens go to their own expert first"
    return f"{said}; {_short(names[least])} has the least, {own[least]:.0%}" if len(names) > 1 else said


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _map(axes: Any, values: NDArray[np.float64], theme: dict[str, str]) -> Any:
    """Show shares as colours."""
    image = axes.imshow(values, vmin=0, vmax=1, cmap=COLOURS, aspect="auto", interpolation="nearest")
    axes.tick_params(colors=theme["ink"], length=0)
    axes.spines[:].set_visible(False)
    return image


def _figures(axes: Any, values: NDArray[np.float64]) -> None:
    """Write each share into its cell, in the ink that its colour bears."""
    from matplotlib import colormaps

    size = 10 if len(values) <= MANY else 7
    for (d, e), share in np.ndenumerate(values):
        r, g, b, _ = colormaps[COLOURS](share)
        ink = "black" if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else "white"
        axes.text(e, d, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=size)


def _part(axes: Any, n: int, theme: dict[str, str]) -> None:
    """Part rows."""
    for i in range(n + 1):
        axes.axhline(i - 0.5, color=theme["page"], linewidth=5)


def _frame(axes: Any, n: int, theme: dict[str, str]) -> None:
    """Part the cells, and frame those of the diagonal in the gaps, where ink shows whatever their colour."""
    from matplotlib.patches import Rectangle

    _part(axes, n, theme)
    for i in range(n + 1):
        axes.axvline(i - 0.5, color=theme["page"], linewidth=5)
    for i in range(n):
        frame = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=theme["ink"], linewidth=2, clip_on=False)
        axes.add_patch(frame).set_zorder(3)
