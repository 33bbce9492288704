"""The routing of a mixture as a picture: which expert the texts of each domain go to, and what each layer does."""

from __future__ import annotations

import io
from collections.abc import Sequence

COLOURS = "cividis"  # even in lightness, and the same to the colour-blind
LIGHT = {"page": "#ffffff", "ink": "#1f2328"}
DARK = {"page": "#0d1117", "ink": "#e6edf3"}
LONGEST = 24  # letters of a name


def draw(
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    load: Sequence[Sequence[float]],
    top_k: int,
    dark: bool = False,
) -> bytes:
    """Draw the picture as PNG.

    Args:
        names: of the experts ``[E]``, which are the domains' names too.
        shares: each domain's tokens by expert ``[E][E]``, of 0 to 1.
        load: each layer's tokens by expert ``[L][E]``, of 0 to 1.
        top_k: experts per token; one expert gets ``1 / top_k`` of the choices at most, which is the scale's end.
        dark: for a dark page.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    theme, n = DARK if dark else LIGHT, len(names)
    numbers = [str(i) for i in range(1, n + 1)]
    short = [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]
    numbered = [f"{name}  {number}" for name, number in zip(short, numbers, strict=True)]
    each = f" ({top_k} for each token, so {1 / top_k:.0%} is all)" if top_k > 1 else ""
    figure = Figure(figsize=(12, 1.6 + 0.42 * n), dpi=110, facecolor=theme["page"], layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.7])
    per_layer = [list(row) for row in zip(*load, strict=True)]  # [E][L]
    panels = (
        (left, shares, "Where each domain's tokens go", f"expert{each}", "domain", numbered),
        (right, per_layer, "What each expert gets, layer by layer", "layer", "expert", numbers),
    )
    for axes, values, title, across, down, rows in panels:
        image = axes.imshow(values, vmin=0, vmax=1 / top_k, cmap=COLOURS, aspect="auto")
        axes.set_title(title, color=theme["ink"], fontsize=11, loc="left")
        axes.set_xlabel(across, color=theme["ink"])
        axes.set_ylabel(down, color=theme["ink"])
        axes.set_yticks(range(n), rows, parse_math=False)
        axes.tick_params(colors=theme["ink"], length=0)
        axes.spines[:].set_visible(False)
    left.set_xticks(range(n), numbers)
    right.xaxis.get_major_locator().set_params(integer=True)
    for d, row in enumerate(shares):
        for e, share in enumerate(row):
            r, g, b, _ = colormaps[COLOURS](share * top_k)
            ink = "black" if 0.299 * r + 0.587 * g + 0.114 * b > 0.5 else "white"
            left.text(e, d, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=10)
    bar = figure.colorbar(image, ax=right, format=lambda x, _: f"{x:.0%}", pad=0.01)
    bar.set_label("share of choices", color=theme["ink"])
    bar.ax.tick_params(colors=theme["ink"], length=0)
    bar.outline.set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor=theme["page"], metadata={"Software": None})
    return data.getvalue()
