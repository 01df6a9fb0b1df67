"""A picture over an axis that is not time: curves by two axes, uprights named under it, figures along both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis, log_axis
from tui_descent.dashboard.text.line import Line, joined

# Cells to the left of the picture, unless a figure needs more.
GUTTER = 7
# A loss that spans more than this is told apart only on a logarithmic axis.
WIDE = 8.0


@dataclass(frozen=True, slots=True)
class Path:
    """Points joined by a line, `x` from 0 to 1; `dot` stands at each of them where it is given."""

    points: Sequence[tuple[float, float]]
    colour: braille.Rgb
    dot: Style | None = None


@dataclass(frozen=True, slots=True)
class Upright:
    """A place on the x axis with its name."""

    x: float
    name: str
    style: Style


def height_axis(values: Sequence[float], top: float) -> Axis:
    """An axis over the values up to `top`: what lies above is a wall, not worth the room."""
    found = [min(v, top) for v in values if math.isfinite(v)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    return log_axis(low, high) if low > 0 and high / low > WIDE else Axis.linear(low, high)


def plotted(
    width: int,
    height: int,
    axis: Axis,
    *,
    paths: Sequence[Path],
    uprights: Sequence[Upright],
    ticks: Mapping[float, str],
) -> list[Strip]:
    """`height` rows: the picture, a row of the uprights' names, a row of the x axis' figures."""
    rows = max(2, height - 2)
    figures = axis.labels(rows)
    gutter = max(GUTTER, *(len(text) + 1 for text in figures.values()), 0)
    columns = max(2, width - gutter)
    right, top = 2 * columns - 1, 4 * rows - 1
    curves = [braille.Curve([(x * right, axis.place(y) * top) for x, y in p.points], p.colour) for p in paths]
    cells = [[Segment(c, s.style) for s in line for c in s.text] for line in braille.canvas(curves, columns, rows)]
    for upright in uprights:
        for row in cells:
            if row[column := _column(upright.x, columns)].text == " ":
                row[column] = Segment("┊", upright.style)
    for path in paths:
        for x, y in path.points if path.dot is not None else ():
            if not math.isnan(axis.place(y)):
                cells[axis.row(y, rows)][_column(x, columns)] = Segment("•", path.dot)
    lines = [
        Line().put(f"{figures.get(y, ''):>{gutter - 1}} ", colours.DIM).extend(joined(cells[y])).strip(width)
        for y in range(rows)
    ]
    below = [Line().put(" " * gutter).extend(row) for row in (_names(uprights, columns), _figures(ticks, columns))]
    return [*lines, *(line.strip(width) for line in below)]


def _column(x: float, columns: int) -> int:
    return min(max(round(x * (2 * columns - 1)) // 2, 0), columns - 1)


class _Row:
    """One row of texts under the picture, each where there is room for it."""

    def __init__(self, columns: int) -> None:
        self.cells = [Segment(" ", colours.DIM)] * columns

    def put(self, start: int, text: str, style: Style) -> bool:
        """Whether it fits, with a blank around it where other text is."""
        end = start + len(text)
        around = self.cells[max(0, start - 1) : end + 1]
        if start < 0 or end > len(self.cells) or any(cell.text != " " for cell in around):
            return False
        self.cells[start:end] = [Segment(character, style) for character in text]
        return True

    def joined(self) -> list[Segment]:
        return joined(self.cells)


def _names(uprights: Sequence[Upright], columns: int) -> list[Segment]:
    """A sign at each place, and to its right or left its name, the first ones first."""
    row = _Row(columns)
    for upright in reversed(uprights):
        row.cells[_column(upright.x, columns)] = Segment("▲", upright.style)
    for upright in uprights:
        at = _column(upright.x, columns)
        if not row.put(at + 2, upright.name, upright.style):
            row.put(at - 1 - len(upright.name), upright.name, upright.style)
    return row.joined()


def _figures(ticks: Mapping[float, str], columns: int) -> list[Segment]:
    row = _Row(columns)
    for x, text in ticks.items():
        row.put(min(max(_column(x, columns) - len(text) // 2, 0), columns - len(text)), text, colours.DIM)
    return row.joined()
