"""A picture of a plane with numbers on both axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import HUGE, Axis, nice_above, numbered_rows
from tui_descent.dashboard.charts.picture import Picture
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import axis_number

GUTTER = 8  # cells left of the picture, for the numbers of the vertical axis
BELOW = 1  # rows below it, for those of the horizontal axis
APART = 14  # the least number of columns between two numbers of the horizontal axis


@dataclass(frozen=True, slots=True)
class Plane:
    """Where points of the plane lie on a picture of `columns` × `rows` cells between the corners `low` and `high`."""

    # The centres of a symmetric picture lie between two dots. This shift makes them, and what is almost there, the
    # same dot.
    TIE: ClassVar[float] = 0.01

    low: tuple[float, ...]
    high: tuple[float, ...]
    columns: int
    rows: int

    def dot(self, x: float, y: float) -> tuple[float, float]:
        """The braille dot at a point; also outside of the picture."""
        across, up = self._share(x, 0), self._share(y, 1)
        return across * 2 * self.columns - 0.5 - self.TIE, (1 - up) * 4 * self.rows - 0.5 - self.TIE

    def cell(self, x: float, y: float) -> tuple[int, int] | None:
        """The cell of a point; None if it is not on the picture."""
        if not (0 <= self._share(x, 0) <= 1 and 0 <= self._share(y, 1) <= 1):
            return None
        across, down = self.dot(x, y)
        return max(0, round(across)) // 2, max(0, round(down)) // 4

    def _share(self, value: float, axis: int) -> float:
        return (value - self.low[axis]) / (self.high[axis] - self.low[axis])


def plane_size(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of the picture in a panel of `width` × `height` cells."""
    return max(0, width - GUTTER), max(0, height - BELOW)


def with_axes(picture: Picture, across: Axis, up: Axis, width: int) -> list[Strip]:
    """The picture's rows with the numbers of the axis `up` beside them, and below them a row with the numbers of the
    axis `across`.
    """
    numbers = up.labels(picture.rows, width=GUTTER - 1) if picture.rows and _has_numbers(up) else {}
    rows = numbered_rows(picture.segments(), numbers, GUTTER, width)
    return [*rows, _numbers(across, picture.columns).to_strip(width)]


def _numbers(across: Axis, columns: int) -> Line:
    line = Line().add(" " * GUTTER)
    if columns < 2 or not _has_numbers(across):
        return line
    unit = nice_above((across.high - across.low) * APART / columns)
    for n in range(math.ceil(across.low / unit), math.floor(across.high / unit) + 1):
        text = axis_number(n * unit)
        start = GUTTER + int(across.position(n * unit) * columns) - len(text) // 2
        if line.width <= start and start + len(text) <= GUTTER + columns:
            line.pad_to(start).add(text, colours.DIM)
    return line


def _has_numbers(axis: Axis) -> bool:
    """Whether numbers can be written at the axis. They cannot if its limits are huge, or too close to differ in a few
    digits.
    """
    extent = axis.high - axis.low
    return 1e-12 * max(abs(axis.low), abs(axis.high)) < extent < HUGE
