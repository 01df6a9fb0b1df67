"""The marks of a race's lanes. Each lane has a glyph and a colour of its own: colour alone never tells them apart.

The first six colours are those of Okabe and Ito (2008), ordered so that neighbours differ most for every kind of colour
vision.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from rich.style import Style

from tui_descent.dashboard.charts.raster import Rgb

_MARKS = (
    ("●", "#56b4e9"),  # sky blue
    ("◆", "#f0e442"),  # yellow
    ("▲", "#d55e00"),  # vermillion
    ("■", "#ffffff"),  # white
    ("✚", "#cc79a7"),  # purple
    ("✕", "#009e73"),  # green
    ("▼", "#a0a8b4"),  # grey
    ("★", "#8c9eff"),  # lavender
)


class LaneMark(NamedTuple):
    """A lane's glyph and colour."""

    glyph: str
    colour: str

    @property
    def rgb(self) -> Rgb:
        """The colour's parts, from 0 to 255."""
        red, green, blue = (int(self.colour[n : n + 2], 16) for n in (1, 3, 5))
        return red, green, blue

    @property
    def style(self) -> Style:
        """The style of the lane's name and glyph."""
        return _style(self.colour)


@cache
def _style(colour: str) -> Style:
    return Style.parse(f"bold {colour}")


def lane_mark(number: int) -> LaneMark:
    """The mark of a lane, by its number in the race."""
    return LaneMark(*_MARKS[number % len(_MARKS)])
