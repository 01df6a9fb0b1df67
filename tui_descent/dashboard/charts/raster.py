"""A picture of terminal cells: braille lines, fills with edges in eighths of a cell, half-block pixels and text.

A cell of 2 × 4 dots has one text colour and one background. What is drawn later covers the text or dots in a cell but
keeps the cell's background, so a line over a fill has its own colour.

Dots are counted from the bottom left, so y points up: columns × 2 dots wide, rows × 4 dots high. Columns and rows are
counted from the top left. What lies outside is cut off. A NaN makes a gap. An infinity counts as a point far outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

from tui_descent.dashboard.charts.cells import BRAILLE, DOT_BITS, Point, clipped, joined, limited

Rgb = tuple[int, int, int]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
# How many eighths of a cell must be filled so that text or dots have the fill as background, and so that it is shaded.
TEXT_FILLED, HALF_FILLED = 6, 4


class Raster:
    """`paper` is the colour of the background where nothing is drawn.

    With `shaded`, fills are drawn as `░` in their colour, for terminals that have too few colours for backgrounds.
    """

    def __init__(self, columns: int, rows: int, *, paper: Rgb = (15, 17, 21), shaded: bool = False) -> None:
        self.columns, self.rows, self.paper, self._shaded = max(0, columns), max(0, rows), paper, shaded
        cells = self.columns * self.rows
        self._dots = bytearray(cells)
        self._text: list[str] = [""] * cells
        self._ink: list[Rgb | Style | None] = [None] * cells
        self._ground: list[Rgb | None] = [None] * cells
        # How many eighths of the cell have the background: from the bottom up, or negative from the top down.
        self._filled = [8] * cells

    # Drawing.

    def dot(self, x: int, y: int, ink: Rgb) -> None:
        """Set one dot. Dots and text of another colour disappear from its cell."""
        if 0 <= x < 2 * self.columns and 0 <= y < 4 * self.rows:
            cell = (self.rows - 1 - (y >> 2)) * self.columns + (x >> 1)
            if self._ink[cell] != ink or self._text[cell]:
                self._dots[cell], self._text[cell], self._ink[cell] = 0, "", ink
            self._dots[cell] |= DOT_BITS[x & 1][3 - (y & 3)]

    def line(self, points: Iterable[Point], ink: Rgb, *, thickness: int = 1) -> None:
        """Join the points by straight lines, `thickness` dots high. A point between two gaps is a dot."""
        before: Point | None = None
        joined = True  # whether the point before is part of a line
        drawn: tuple[int, int] | None = None
        half = (thickness - 1) / 2  # a thick line is centred on the exact one
        for x, y in points:
            if math.isnan(x) or math.isnan(y):
                if before is not None and not joined:
                    self._stroke(before, before, ink, thickness)
                before, joined = None, True
                continue
            point = limited((x, y))
            dot = (math.floor(point[0] + 0.5), math.floor(point[1] + 0.5 - half))
            if before is not None and not (joined and dot == drawn):
                self._stroke(before, point, ink, thickness)
            joined, before, drawn = before is not None, point, dot
        if before is not None and not joined:
            self._stroke(before, before, ink, thickness)

    def _stroke(self, start: Point, end: Point, ink: Rgb, thickness: int) -> None:
        half = (thickness - 1) / 2
        inside = clipped(
            start, end, (-0.5, half - thickness + 0.5), (2 * self.columns - 0.5, 4 * self.rows - 0.5 + half)
        )
        if inside is None:
            return
        x0, x1 = (math.floor(x + 0.5) for x, _ in inside)
        y0, y1 = (math.floor(y + 0.5 - half) for _, y in inside)
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for n in range(steps + 1):
            x = x0 + _rounded(n * (x1 - x0), steps)
            y = y0 + _rounded(n * (y1 - y0), steps)
            for up in range(thickness):
                self.dot(x, y + up, ink)

    def fill(self, column: int, low: float, high: float, ground: Rgb) -> None:
        """Give a column a background from height `low` to `high`, in dots; its ends are drawn in eighths of a cell.

        If both ends are in one cell, the fill is drawn as dots, because a cell has only one edge.
        """
        if not 0 <= column < self.columns or not low <= high or high < 0 or low >= 4 * self.rows:
            return
        low, high = max(low, 0.0), min(high, 4.0 * self.rows)
        bottom, top = round(2 * low), max(round(2 * high), round(2 * low) + 1)  # in eighths of a cell
        if bottom // 8 == top // 8 and bottom % 8 and not self._shaded:
            for y in range(bottom // 2, (top + 1) // 2):
                self.dot(2 * column, y, ground)
                self.dot(2 * column + 1, y, ground)
            return
        for up in range(max(bottom // 8, 0), min((top + 7) // 8, self.rows)):
            cell = (self.rows - 1 - up) * self.columns + column
            self._ground[cell] = ground
            self._filled[cell] = top - 8 * up if top < 8 * up + 8 else bottom - 8 * up - 8 if bottom > 8 * up else 8

    def background(self, column: int, row: int, ground: Rgb) -> None:
        """Give one cell a background."""
        if 0 <= column < self.columns and 0 <= row < self.rows:
            cell = row * self.columns + column
            self._ground[cell], self._filled[cell] = ground, 8

    def pixel(self, column: int, half_row: int, colour: Rgb) -> None:
        """Set half of a cell: pixels are one column wide and half a row high, counted from the top left."""
        row = half_row >> 1
        if not (0 <= column < self.columns and 0 <= row < self.rows):
            return
        cell = row * self.columns + column
        if self._text[cell] != "▀":  # so far the cell has one colour
            self._text[cell], self._dots[cell] = "▀", 0
            self._ink[cell] = self._ground[cell] = self._ground[cell] or self.paper
            self._filled[cell] = 8
        (self._ground if half_row & 1 else self._ink)[cell] = colour

    def write(self, column: int, row: int, text: str, style: Style) -> None:
        """Write text from a cell on. Its characters must be one cell wide."""
        for n, character in enumerate(text, column):
            if 0 <= n < self.columns and 0 <= row < self.rows:
                cell = row * self.columns + n
                self._text[cell], self._ink[cell] = character, style

    # Reading.

    def is_blank(self, column: int, row: int) -> bool:
        """Whether a cell has neither dots nor text; it may have a background."""
        cell = row * self.columns + column
        return not self._dots[cell] and not self._text[cell]

    def is_empty(self, column: int, row: int) -> bool:
        """Whether nothing at all is drawn in a cell."""
        return self.is_blank(column, row) and self._ground[row * self.columns + column] is None

    def segments(self, row: int) -> list[Segment]:
        """One row, cells of the same style joined."""
        return joined(map(self._cell, range(row * self.columns, (row + 1) * self.columns)))

    def row_key(self, row: int) -> object:
        """A value that changes when the row looks different."""
        part = slice(row * self.columns, (row + 1) * self.columns)
        return self._dots[part], self._text[part], self._ink[part], self._ground[part], self._filled[part]

    def _cell(self, cell: int) -> tuple[str, Style]:
        ground, filled = self._ground[cell], self._filled[cell]
        text = self._text[cell] or (BRAILLE[dots] if (dots := self._dots[cell]) else "")
        if abs(filled) < (TEXT_FILLED if text else HALF_FILLED if self._shaded else 0):
            ground = None
        if text and text != " ":
            ink = self._ink[cell]
            if text == "▀" and ink == ground:
                return " ", cell_style(None, ground)
            return text, cell_style(ink, None if self._shaded and text != "▀" else ground)
        if ground is None:
            return " ", cell_style(None, None)
        if self._shaded:
            return "░", cell_style(ground, None)
        if abs(filled) == 8:
            return " ", cell_style(None, ground)
        if filled > 0:
            return _EIGHTHS[filled], cell_style(ground, None)
        return _EIGHTHS[8 + filled], cell_style(self.paper, ground)


@lru_cache(maxsize=4096)
def cell_style(ink: Rgb | Style | None, ground: Rgb | None) -> Style:
    """The style of a cell: a colour or a whole style for the text, and a background colour."""
    text = ink if isinstance(ink, Style) else Style(color=Color.from_rgb(*ink)) if ink is not None else Style()
    return text + Style(bgcolor=Color.from_rgb(*ground)) if ground is not None else text


def _rounded(part: int, whole: int) -> int:
    """The nearest whole number to `part` / `whole`; half is rounded up, and `whole` may be 0."""
    return (2 * part + whole) // (2 * whole) if whole else 0
