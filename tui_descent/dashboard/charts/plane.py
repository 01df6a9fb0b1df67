"""A picture of a plane with numbers on both axes."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import HUGE, Axis, nice_above, numbered_rows
from tui_descent.dashboard.charts.picture import Picture
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import axis_number

GUTTER = 8  # cells left of the picture, for the numbers of the vertical axis
BELOW = 1  # rows below it, for those of the horizontal axis
APART = 14  # the least number of columns between two numbers of the horizontal axis


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
