"""The routing of a text as HTML: its words tinted by expert, the experts' shares, and every token in every layer."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")  # Okabe and Ito
TINT = "59"  # opacity, 35 %: under it the page's own ink keeps its contrast, on light pages and on dark ones
JOINER = "\u200d"
# a token goes on with a word if letters meet; from U+2E80 on, where no spaces part words, each token is one
LETTERS = re.compile(r"[^\W\u2e80-\U0010ffff]{2}")
WORN = "\ufe0e\ufe0f"  # selectors, which say how the character before them looks
SKINS = range(0x1F3FB, 0x1F400)  # colours of skin
BLANKS = str.maketrans({"\n": "⏎", "\t": "⇥"})


class Piece(NamedTuple):
    """Part of a text: its characters, and each layer's expert for each of its tokens ``[T][L]``."""

    text: str
    experts: list[tuple[int, ...]]

    @property
    def shares(self) -> list[tuple[int, float]]:
        """The experts that its tokens went to in some layer, each with its share of all these choices, the most first.

        Of experts with equal shares that of the earlier layer is first.
        """
        choices = Counter(e for layer in zip(*self.experts, strict=True) for e in layer)
        return [(e, n / choices.total()) for e, n in choices.most_common()]

    @property
    def expert(self) -> int:
        """The expert of most choices."""
        return self.shares[0][0]


def characters(tokens: Sequence[str], experts: Sequence[Sequence[int]]) -> list[Piece]:
    """Join the tokens of one character, such as the bytes of an emoji, or a letter and its accent.

    Args:
        tokens: of a text ``[T]``, as `trace` gives them: of several that make up one character the last has it.
        experts: that each layer chose for them ``[L][T]``.
    """
    pieces: list[Piece] = []
    waiting: list[tuple[int, ...]] = []  # choices for the first bytes of a character
    for text, chosen in zip(tokens, zip(*experts, strict=True), strict=True):
        waiting.append(chosen)
        if text and pieces and _leans(pieces[-1].text[-1], text[0]):
            pieces[-1] = _joined([pieces[-1], Piece(text, waiting)])
        elif text:
            pieces.append(Piece(text, waiting))
        waiting = [] if text else waiting
    return pieces


def _leans(before: str, after: str) -> bool:
    """Tell whether what follows a character is part of it."""
    return before == JOINER or after in JOINER + WORN or bool(unicodedata.combining(after)) or ord(after) in SKINS


def words(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Join pieces into words.

    Args:
        pieces: of a text, as `characters` gives them.
    """
    word: list[Piece] = []
    for piece in pieces:
        if word and not LETTERS.fullmatch(word[-1].text[-1:] + piece.text[:1]):
            yield _joined(word)
            word = []
        word.append(piece)
    if word:
        yield _joined(word)


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece("".join(piece.text for piece in pieces), [chosen for piece in pieces for chosen in piece.experts])


def show(names: Sequence[str], tokens: Sequence[str], experts: Sequence[Sequence[int]]) -> str:
    """Write the routing of a text as HTML.

    Args:
        names: of the experts.
        tokens, experts: as `characters` takes them.
    """
    if not tokens:
        return ""
    pieces = characters(tokens, experts)
    runs = groupby(words(pieces), key=lambda word: word.expert)
    text = "".join(_run(e, list(run), names) for e, run in runs)
    bars = "".join(_bar(layer, chosen, names) for layer, chosen in enumerate(experts))
    return (
        f"{_legend(names, experts)}<p class='lazymoe-routed'>{text}</p>"
        f"<details><summary>Shares of the experts, layer by layer</summary>{bars}</details>"
        f"<details><summary>Every token in every layer</summary>{_map(names, pieces)}</details>"
    )


def _legend(names: Sequence[str], experts: Sequence[Sequence[int]]) -> str:
    """List the experts with their shares of the tokens. A token is the expert's that most layers chose first."""
    most = Counter(Piece("", [chosen]).expert for chosen in zip(*experts, strict=True))
    entries = "".join(
        f"<li><span class='lazymoe-token-of-text' style='{_tint(e)}'>{e + 1}</span> "
        f"{html.escape(name)} <b>{most[e] / most.total():.0%}</b></li>"
        for e, name in enumerate(names)
    )
    return f"<ul class='lazymoe-legend' aria-label='Share of the {most.total()} tokens'>{entries}</ul>"


def _run(e: int, run: Sequence[Piece], names: Sequence[str]) -> str:
    """Show words that go to the same expert, each tinted, with its shares as a title; its number stands at the end."""
    shown = ""
    for word in run:
        bare = word.text.lstrip()
        tinted = f"<span class='lazymoe-token-of-text' style='{_tint(e)}' title='{_told(word, names)}'>"
        shown += word.text[: len(word.text) - len(bare)] + (f"{tinted}{html.escape(bare)}</span>" if bare else "")
    words = shown.rstrip()
    number = f"<sup>{e + 1}<span class='lazymoe-spoken'> {html.escape(names[e])} </span></sup>" if words else ""
    return words + number + shown[len(words) :]


def _told(piece: Piece, names: Sequence[str]) -> str:
    """Say a piece's shares, escaped."""
    return html.escape(", ".join(f"{e + 1} {names[e]} {share:.0%}" for e, share in piece.shares))


def _tint(expert: int) -> str:
    colour = COLOURS[expert % len(COLOURS)]
    return f"background:{colour}{TINT};border-color:{colour}"


def _bar(layer: int, chosen: Sequence[int], names: Sequence[str]) -> str:
    """Draw one layer's shares of the tokens as a bar, with numbers where there is room."""
    parts = ""
    for e, name in enumerate(names):
        if share := chosen.count(e) / len(chosen):
            title = f"{e + 1} {html.escape(name)} {share:.0%}"
            parts += f"<div title='{title}' style='width:{share:.2%};{_tint(e)}'>{_figure(e, share)}</div>"
    return f"<div class='lazymoe-layer'><span>layer {layer}</span><div>{parts}</div></div>"


def _figure(e: int, share: float) -> str:
    if share < 0.05:
        return ""
    return f"{e + 1}: {share:.0%}" if share >= 0.15 else f"{e + 1}"


def _map(names: Sequence[str], pieces: Sequence[Piece]) -> str:
    """Write a table: a line for each token of whole characters, a column for each layer, neighbours alike as one."""
    layers = len(pieces[0].experts[0])
    which = "layer 0" if layers == 1 else f"layers 0 to {layers - 1}"
    rows = "".join(_line(piece, names) for piece in pieces)
    head = f"<tr><th scope='col'>token</th><th scope='col' colspan='{layers}'>{which}</th></tr>"
    named = "tabindex='0' role='region' aria-label='Every token in every layer'"  # it scrolls
    return f"<div class='lazymoe-map' {named}><table>{head}{rows}</table></div>"


def _line(piece: Piece, names: Sequence[str]) -> str:
    """Write a token's line. Of several tokens of one character the last counts, which has read the others."""
    cells = ""
    for e, alike in groupby(piece.experts[-1]):
        wide = len(list(alike))
        cells += f"<td colspan='{wide}' style='{_tint(e)}' title='{html.escape(names[e])}'>{e + 1}</td>"
    return f"<tr><th scope='row'>{html.escape(piece.text.translate(BLANKS))}</th>{cells}</tr>"
