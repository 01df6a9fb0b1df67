"""A picture made of cells: coloured halves, braille dots and glyphs, for terminals with many, few or no colours.

It does not depend on what it shows. Colours are `#rrggbb`. Coordinates count from the upper left corner and may have
any size; what lies outside the picture is not drawn.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from tui_descent.dashboard.charts.cells import BRAILLE, DOT_BITS, Point, clipped, joined, limited

# How many colours a terminal shows. With 16 or none, a picture has no backgrounds.
Depth = Literal["truecolor", "256", "16", "none"]


def depth_of(colour_system: str | None, *, no_colour: bool) -> Depth:
    """The depth of a terminal's `colour_system`, as rich names it. `no_colour` says that NO_COLOR is set."""
    if no_colour or colour_system is None:
        return "none"
    return "truecolor" if colour_system == "truecolor" else "256" if colour_system == "256" else "16"


class Picture:
    """`columns` × `rows` cells; each has two halves, one above the other, and 2 × 4 braille dots.

    A glyph covers dots, and dots cover the halves; the upper half then gives the background. All dots of a cell have
    one colour: setting a dot in another colour removes the dots that were there.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = max(0, columns), max(0, rows)
        self.halves: list[list[str | None]] = [[None] * self.columns for _ in range(2 * self.rows)]
        self._dots: dict[tuple[int, int], tuple[str, int]] = {}
        self._glyphs: dict[tuple[int, int], tuple[str, str, bool]] = {}

    def copy(self) -> Picture:
        """A picture to draw on, with the same contents."""
        copied = Picture(0, 0)
        copied.columns, copied.rows = self.columns, self.rows
        copied.halves = [row.copy() for row in self.halves]
        copied._dots, copied._glyphs = self._dots.copy(), self._glyphs.copy()
        return copied

    def dot(self, x: int, y: int, colour: str) -> None:
        """Set one of 2·columns × 4·rows braille dots."""
        if 0 <= x < 2 * self.columns and 0 <= y < 4 * self.rows:
            cell = x // 2, y // 4
            before, bits = self._dots.get(cell, (colour, 0))
            self._dots[cell] = colour, (bits if before == colour else 0) | DOT_BITS[x % 2][y % 4]

    def dots_in(self, column: int, row: int) -> int:
        """How many dots are set in a cell."""
        return self._dots.get((column, row), ("", 0))[1].bit_count()

    def clear_dots(self, column: int, row: int) -> None:
        """Remove the dots of a cell."""
        self._dots.pop((column, row), None)

    def line(self, start: Point, end: Point, colour: str) -> None:
        """Set the dots of a straight line. Nothing is drawn if an end is not finite."""
        if not all(map(math.isfinite, (*start, *end))):
            return
        most = 2.0 * self.columns - 1, 4.0 * self.rows - 1
        inside = clipped(limited(start), limited(end), (0.0, 0.0), most)
        if inside is None:
            return
        (x0, y0), (x1, y1) = inside
        count = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for n in range(count + 1):
            self.dot(round(x0 + (x1 - x0) * n / count), round(y0 + (y1 - y0) * n / count), colour)

    def glyph(self, column: int, row: int, character: str, colour: str, *, bold: bool = False) -> None:
        """Write one character of one cell's width."""
        if 0 <= column < self.columns and 0 <= row < self.rows:
            self._glyphs[column, row] = character, colour, bold

    def segments(self) -> list[list[Segment]]:
        """The rows, with neighbours of the same style merged."""
        return [self._row(y) for y in range(self.rows)]

    def _row(self, y: int) -> list[Segment]:
        upper, lower = self.halves[2 * y], self.halves[2 * y + 1]
        return joined(self._cell(x, y, upper[x], lower[x]) for x in range(self.columns))

    def _cell(self, x: int, y: int, upper: str | None, lower: str | None) -> tuple[str, Style]:
        if (glyph := self._glyphs.get((x, y))) is not None:
            return glyph[0], _style(glyph[1], upper, glyph[2])
        if (dots := self._dots.get((x, y))) is not None:
            return BRAILLE[dots[1]], _style(dots[0], upper)
        if upper == lower:
            return " ", _style(None, upper)
        return ("▄", _style(lower, None)) if upper is None else ("▀", _style(upper, lower))


@cache
def _style(colour: str | None, ground: str | None, bold: bool = False) -> Style:
    return Style(
        color=None if colour is None else Color.parse(colour),
        bgcolor=None if ground is None else Color.parse(ground),
        bold=bold or None,
    )


def resampled(values: list[float], columns: int, rows: int, to_columns: int, to_rows: int) -> list[list[float]]:
    """Rows of values at the centres of `to_columns` × `to_rows` cells, interpolated between the values of a grid.

    `values` are at the centres of `columns` × `rows` cells that cover the same area, row by row.
    """
    grid = [values[n * columns : (n + 1) * columns] for n in range(rows)]
    if (columns, rows) == (to_columns, to_rows):
        return grid
    across, down = _places(columns, to_columns), _places(rows, to_rows)
    found = []
    for above, below, share in down:
        row = [a if share == 0 else a + (b - a) * share for a, b in zip(grid[above], grid[below], strict=True)]
        found.append([row[a] + (row[b] - row[a]) * part if part else row[a] for a, b, part in across])
    return found


def _places(count: int, to_count: int) -> list[tuple[int, int, float]]:
    """For each of `to_count` cells the two nearest of `count` cells, and how far it lies between them (0 to 1)."""
    places = []
    for n in range(to_count):
        place = min(max((n + 0.5) * count / to_count - 0.5, 0.0), count - 1.0)
        first = min(int(place), count - 1)
        places.append((first, min(first + 1, count - 1), place - first))
    return places
