"""Brighter means larger, in true colour, in 256 and in 16 colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from factories import reading, started, steps
from fake_run import view
from rich.color import Color, ColorSystem
from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.time_axis import gutter
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.loss_chart import LossPanel


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


def heatmap_with_a_gap() -> tuple[str, list[list[tuple[str, Style]]], int]:
    """Readings up to step 200 and from 1,200 on: the border, each row's cells, and the first column."""
    events = [started(4), steps(0, [1.0] * 1600)]
    look = view([*events, *(reading(step, 0.5, 4) for step in (*range(100, 220, 20), *range(1200, 1400, 20)))])
    panel = HeatmapPanel()
    rows = panel.draw(look, 80, 3)
    cells = [[(c, s.style or Style()) for s in row for c in s.text] for row in rows]
    return panel.heading(look)[1], cells, gutter(look, 80)


@pytest.mark.usefixtures("palette_of")
def test_heatmap_columns_without_a_reading_repeat_the_last_one_dimmed() -> None:
    colours.choose_palette("truecolor")
    border, rows, left = heatmap_with_a_gap()
    assert "dimmed: no reading" in border
    for row in rows:
        bright, dim = row[left + 5][1], row[left + 20][1]
        assert dim != bright
        assert dim.bgcolor is not None
        assert bright.bgcolor is not None
        assert lightness(dim.bgcolor) < lightness(bright.bgcolor)
        assert row[left + 48][1] == dim, "after the last reading"
        assert row[left][1] == colours.heat_cell(None, None), "nothing is known before the first reading"
    assert len({row[left + 20][1] for row in rows}) == len(rows), "layers still differ"


@pytest.mark.usefixtures("palette_of")
@pytest.mark.parametrize("system", ["256", "standard", "none"])
def test_with_few_colours_columns_without_a_reading_are_stippled(system: str) -> None:
    colours.choose_palette(system)
    border, rows, left = heatmap_with_a_gap()
    assert "░ no reading" in border
    for row in rows:
        assert row[left + 20][0] == row[left + 48][0] == "░"
        assert row[left + 20][1].color in (row[left + 5][1].color, row[left + 5][1].bgcolor)


@pytest.mark.usefixtures("palette_of")
def test_the_loss_band_is_a_dark_background_or_shaded() -> None:
    grounds = {}
    for system in ("truecolor", "256", "standard"):
        colours.choose_palette(system)
        losses = [2.0 + (step % 7) for step in range(900)]
        rows = LossPanel().draw(view([started(4), steps(0, losses)]), 80, 14)
        grounds[system] = {s.style.bgcolor for row in rows for s in row if s.style is not None and s.style.bgcolor}
        assert any("░" in row.text for row in rows) == (system == "standard")
    assert grounds["standard"] == set()
    assert grounds["truecolor"] == {Color.from_rgb(*colours.TRUE_COLOUR.band)}
    (band,) = grounds["256"]
    assert band.downgrade(ColorSystem.EIGHT_BIT).number == 236
    assert lightness(band) < lightness(Color.parse(colours.BACKGROUND)) + 20


def test_greys_and_states_keep_their_hue_with_fewer_colours() -> None:
    css = (Path(colours.__file__).parent / "dashboard.tcss").read_text(encoding="utf-8")
    borders = set(re.findall(r"border: round (#[0-9a-f]{6})", css))
    greys = [Color.parse(border) for border in borders if max(saturation(border)) < 25]
    assert len(greys) >= 3
    for grey in greys:
        assert grey.downgrade(ColorSystem.EIGHT_BIT).number in range(232, 256), grey
    assert colours.GREEN.color is not None
    assert colours.GREEN.color.downgrade(ColorSystem.STANDARD).number in (2, 10)


def saturation(colour: str) -> list[int]:
    """The differences between the channels of a colour."""
    channels = list(Color.parse(colour).get_truecolor())
    return [max(channels) - channel for channel in channels]


def test_states_differ_in_16_colours_and_without_any() -> None:
    words = ("running", "paused", "held", "failed", "waiting")
    assert [colours.state_glyph(word) for word in words] == ["●", "‖", "▲", "✕", "○"]
    assert (colours.state_glyph("silent for 8 s"), colours.state_glyph("building")) == ("▲", "○")
    styles = [colours.GREEN, colours.ORANGE, colours.RED, colours.MARK, colours.KEY, colours.DIM]
    shown = {style.color.downgrade(ColorSystem.STANDARD).number for style in styles if style.color is not None}
    assert len(shown) == len(styles)
