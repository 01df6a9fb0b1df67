"""Brighter means larger, in true colour, in 256 and in 16 colours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from rich.color import Color, ColorSystem

from tui_descent.dashboard import colours


@pytest.fixture
def palette_of() -> Iterator[object]:
    yield colours.choose_palette
    colours.choose_palette("truecolor")


def lightness(colour: Color) -> float:
    """CIELAB L* of an sRGB colour (IEC 61966-2-1; white point D65)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.get_truecolor().normalized]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * (y ** (1 / 3) if y > 216 / 24389 else (24389 / 27 * y + 16) / 116) - 16


def test_lightness_rises_strictly_in_256_colours() -> None:
    shown = [colour.downgrade(ColorSystem.EIGHT_BIT) for colour in colours.COLOURS_256.colours]
    steps = list(dict.fromkeys(colour.number for colour in shown))
    assert steps == [233, 235, 236, 238, 239, 241, 242, 244, 246, 144, 185, 227]
    assert len(shown) == colours.LEVELS
    light = [lightness(Color.from_ansi(number)) for number in steps if number is not None]
    assert all(b > a + 3 for a, b in pairwise(light)), light


def test_lightness_rises_in_true_colour_and_never_falls_in_16_colours() -> None:
    shown = colours.TRUE_COLOUR.colours
    assert all(lightness(b) > lightness(a) for a, b in pairwise(shown))
    few = [lightness(colour.downgrade(ColorSystem.STANDARD)) for colour in shown]
    assert all(b >= a for a, b in pairwise(few))
    assert len(set(few)) >= 4


def test_text_in_the_darkest_colour_can_be_read() -> None:
    for palette in (colours.TRUE_COLOUR, colours.COLOURS_256):
        assert lightness(palette.colours[palette.darkest_text]) > lightness(Color.parse(colours.BACKGROUND)) + 20


@pytest.mark.usefixtures("palette_of")
def test_a_terminal_with_256_colours_gets_the_ramp_in_cells_and_legend() -> None:
    before = colours.heat_cell(23, 0)
    colours.choose_palette("256")
    cell = colours.heat_cell(23, 0)
    assert cell.color is not None
    assert cell.color != before.color
    assert cell.color.downgrade(ColorSystem.EIGHT_BIT).number == 227
    assert "[#121212]█" in colours.legend(12)
    colours.choose_palette("truecolor")
    assert colours.heat_cell(23, 0) == before
