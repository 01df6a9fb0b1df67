"""Curves over an x axis other than time, with named vertical markers and numbers on both axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis, log_axis, numbered_rows
from tui_descent.dashboard.text.line import Line, merge_segments

# The number of cells left of the plot; a longer number on the axis widens it.
GUTTER = 7
# Above this ratio of highest to lowest loss the y axis is logarithmic.
LOG_FROM_RATIO = 8.0


@dataclass(frozen=True, slots=True)
class Polyline:
    """Points joined by a line, x from 0 to 1. `dot` is the style of a dot at each point, if any."""

    points: Sequence[tuple[float, float]]
    colour: braille.Rgb
    dot: Style | None = None


@dataclass(frozen=True, slots=True)
class Marker:
    """A named vertical line at `x`, from 0 to 1."""

    x: float
    name: str
    style: Style


def height_axis(values: Sequence[float], top: float) -> Axis:
    """A y axis over the values up to `top`; larger values are clamped to it."""
    found = [min(v, top) for v in values if math.isfinite(v)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    return log_axis(low, high) if low > 0 and high / low > LOG_FROM_RATIO else Axis.linear(low, high)


def xy_plot(
    width: int,
    height: int,
    axis: Axis,
    *,
    paths: Sequence[Polyline],
    markers: Sequence[Marker],
    ticks: Mapping[float, str],
) -> list[Strip]:
    """`height` rows: the plot, a row of the markers' names, a row of the x axis' numbers."""
    rows = max(2, height - 2)
    numbers = axis.labels(rows)
    gutter = max(GUTTER, *(len(text) + 1 for text in numbers.values()), 0)
    columns = max(2, width - gutter)
    right, top = 2 * columns - 1, 4 * rows - 1
    curves = [braille.Curve([(x * right, axis.position(y) * top) for x, y in p.points], p.colour) for p in paths]
    cells = braille.canvas(curves, columns, rows)
    for marker in markers:
        for row in cells:
            if row[column := _column(marker.x, columns)].text == " ":
                row[column] = Segment("┊", marker.style)
    for path in paths:
        for x, y in path.points if path.dot is not None else ():
            if not math.isnan(axis.position(y)):
                cells[axis.row(y, rows)][_column(x, columns)] = Segment("•", path.dot)
    below = [Line().add(" " * gutter).extend(row) for row in (_names(markers, columns), _numbers(ticks, columns))]
    return [*numbered_rows(cells, numbers, gutter, width), *(line.to_strip(width) for line in below)]


def _column(x: float, columns: int) -> int:
    return min(max(round(x * (2 * columns - 1)) // 2, 0), columns - 1)


class _Row:
    """A row of texts below the plot."""

    def __init__(self, columns: int) -> None:
        self.cells = [Segment(" ", colours.DIM)] * columns

    def add(self, start: int, text: str, style: Style) -> bool:
        """Write a text if there is room for it with a blank on both sides. Returns whether it was written."""
        end = start + len(text)
        around = self.cells[max(0, start - 1) : end + 1]
        if start < 0 or end > len(self.cells) or any(cell.text != " " for cell in around):
            return False
        self.cells[start:end] = [Segment(character, style) for character in text]
        return True

    def joined(self) -> list[Segment]:
        return merge_segments(self.cells)


def _names(markers: Sequence[Marker], columns: int) -> list[Segment]:
    """A triangle at each marker, with the name to the right or left.

    If names collide, the first marker's is written.
    """
    row = _Row(columns)
    for marker in reversed(markers):
        row.cells[_column(marker.x, columns)] = Segment("▲", marker.style)
    for marker in markers:
        at = _column(marker.x, columns)
        if not row.add(at + 2, marker.name, marker.style):
            row.add(at - 1 - len(marker.name), marker.name, marker.style)
    return row.joined()


def _numbers(ticks: Mapping[float, str], columns: int) -> list[Segment]:
    row = _Row(columns)
    for x, text in ticks.items():
        row.add(min(max(_column(x, columns) - len(text) // 2, 0), columns - len(text)), text, colours.DIM)
    return row.joined()
