"""The picture of a routing: what it shows, whatever the experts are called and however many there are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from lazymoe.reporting.picture import COLOURS, DARK, LIGHT, draw, sentence


def pixels(png: bytes) -> np.ndarray:
    """Its colours ``[rows, columns, 3]``, of 0 to 1."""
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png))[..., :3]


def drawn(names: list[str], shares: list[list[float]], dark: bool = False) -> np.ndarray:
    """The picture of one layer."""
    return pixels(draw(names, [shares], dark))


def area(picture: np.ndarray, share: float) -> float:
    """What part of a picture has the colour of a share."""
    return float((np.abs(picture - colormaps[COLOURS](share)[:3]).max(-1) < 0.01).mean())


def test_colours_are_the_shares() -> None:
    picture = drawn(["a", "b"], [[1.0, 0.0], [0.25, 0.75]])
    assert all(area(picture, share) > 0.02 for share in (1.0, 0.0, 0.25, 0.75))
    assert area(picture, 0.5) < 0.001


def test_layers_are_averaged_above_and_domains_below() -> None:
    picture = pixels(draw(["a", "b"], [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]))
    half = pixels(draw(["a", "b"], [[[0.5, 0.5], [0.5, 0.5]]] * 2))
    assert area(picture, 0.5) > 0.1 and area(picture, 1.0) > 0.05 and area(picture, 0.0) > 0.05
    assert area(half, 0.5) > 0.2


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("experts", [2, 4, 8, 12])
def test_the_diagonal_is_framed_in_ink(experts: int, dark: bool) -> None:
    """Around each of its cells, whatever their colour, and around no other."""
    theme = DARK if dark else LIGHT
    ink = np.array([int(theme["ink"][i : i + 2], 16) for i in (1, 3, 5)]) / 255
    picture = drawn([str(i) for i in range(experts)], np.eye(experts).tolist(), dark)
    lines = (np.abs(picture - ink).max(-1) < 0.02).sum(0)  # pixels of ink in each column
    cell = 0.62 * picture.shape[1] / experts
    framed = int((lines > 0.3 * cell * picture.shape[0] / picture.shape[1]).sum())
    assert framed >= experts + 1


def test_it_says_the_mean_and_the_worst() -> None:
    shares = np.array([[0.9, 0.1, 0.0], [0.3, 0.52, 0.18], [0.0, 0.0, 1.0]])
    said = "81% of the tokens go to their own expert first; german has the least, 52%"
    assert sentence(["code", "german", "maths"], shares) == said
    assert sentence(["code"], np.ones((1, 1))) == "100% of the tokens go to their own expert first"


def test_it_is_for_a_light_page_or_a_dark_one() -> None:
    light, dark = (drawn(["a", "b"], [[0.5, 0.5]] * 2, dark=d) for d in (False, True))
    assert light.shape == dark.shape
    assert light[0, 0].min() == 1 and dark[0, 0].max() < 0.1


@pytest.mark.parametrize("experts", [1, 2, 16])
def test_every_expert_has_its_row(experts: int) -> None:
    shares = np.eye(experts).tolist()
    taller = drawn([str(i) for i in range(experts + 1)], np.eye(experts + 1).tolist())
    assert taller.shape[0] > drawn([str(i) for i in range(experts)], shares).shape[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$x^{2$", "\\frac{", "_a_", "a" * 200, "模型", "", "%s {0}"])
def test_no_name_breaks_it(name: str) -> None:
    assert drawn([name, "b"], [[0.5, 0.5]] * 2).shape == drawn(["a", "b"], [[0.5, 0.5]] * 2).shape


def test_equal_figures_give_equal_bytes() -> None:
    assert draw(["a"], [[[1.0]]]) == draw(["a"], [[[1.0]]])
