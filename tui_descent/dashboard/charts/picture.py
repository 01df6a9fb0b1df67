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

# How many colours a terminal shows. With 16 or none, a picture has no backgrounds.
Depth = Literal["truecolor", "256", "16", "none"]
# The bit of each braille dot, by column and row within its cell.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800
Look = tuple[str | None, str | None, bool]  # foreground, background, bold
_PLAIN: Look = (None, None, False)


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
            self._dots[cell] = colour, (bits if before == colour else 0) | _BITS[x % 2][y % 4]

    def dots_in(self, column: int, row: int) -> int:
        """How many dots are set in a cell."""
        return self._dots.get((column, row), ("", 0))[1].bit_count()

    def clear_dots(self, column: int, row: int) -> None:
        """Remove the dots of a cell."""
        self._dots.pop((column, row), None)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        """Set the dots of a straight line. Nothing is drawn if an end is not finite."""
        clipped = _clip(start, end, 2 * self.columns - 1, 4 * self.rows - 1)
        if clipped is None:
            return
        (x0, y0), (x1, y1) = clipped
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
        segments: list[Segment] = []
        text, look = "", _PLAIN
        for x in range(self.columns):
            character, wanted = self._cell(x, y, upper[x], lower[x])
            if character == " " and wanted[1] == look[1]:
                wanted = look  # a blank looks the same in every foreground
            if wanted != look and text:
                segments.append(Segment(text, _style(*look)))
                text = ""
            text, look = text + character, wanted
        return [*segments, Segment(text, _style(*look))] if text else segments

    def _cell(self, x: int, y: int, upper: str | None, lower: str | None) -> tuple[str, Look]:
        """The character of a cell, with its foreground, its background and whether it is bold."""
        if (glyph := self._glyphs.get((x, y))) is not None:
            return glyph[0], (glyph[1], upper, glyph[2])
        if (dots := self._dots.get((x, y))) is not None:
            return chr(_BRAILLE + dots[1]), (dots[0], upper, False)
        if upper == lower:
            return " ", (None, upper, False)
        return ("▄", (lower, None, False)) if upper is None else ("▀", (upper, lower, False))


@cache
def _style(colour: str | None, ground: str | None, bold: bool) -> Style:
    return Style(
        color=None if colour is None else Color.parse(colour),
        bgcolor=None if ground is None else Color.parse(ground),
        bold=bold or None,
    )


def _clip(
    start: tuple[float, float], end: tuple[float, float], right: float, bottom: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of a line within 0 … `right` and 0 … `bottom` (Liang and Barsky 1984); None if there is none."""
    (x0, y0), (x1, y1) = start, end
    if not all(map(math.isfinite, (*start, *end))) or right < 0 or bottom < 0:
        return None
    first, last = 0.0, 1.0
    # The numbers are halved before they are subtracted, because a difference of huge numbers would be infinite.
    for a, b, most in ((x0 / 2, x1 / 2, right / 2), (y0 / 2, y1 / 2, bottom / 2)):
        along = b - a
        if along == 0:
            if not 0 <= a <= most:
                return None
            continue
        near, far = sorted((-a / along, (most - a) / along))
        first, last = max(first, near), min(last, far)
    if first > last:
        return None

    def at(share: float) -> tuple[float, float]:
        x, y = (a * (1 - share) + b * share for a, b in ((x0, x1), (y0, y1)))
        return min(max(x, 0.0), right), min(max(y, 0.0), bottom)

    return at(first), at(last)


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
