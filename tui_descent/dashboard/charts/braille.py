"""Braille curves as rows of styled segments, and a plain-text loss chart. Only this file imports plotext.

plotext 6.1 aborts the process on NaN and raises on infinities, so curves are first clipped, and split where they have
gaps. Its figure is global and not thread-safe: draw only from the event loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from rich.segment import Segment
from rich.style import Style

from tui_descent.dashboard.charts.axis import axis_over
from tui_descent.dashboard.text.numbers import axis_step

Point = tuple[float, float]
Rgb = tuple[int, int, int]
Cells = list[list[Segment]]  # rows of one segment per cell
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_BLANK = Style()


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in units of braille dots, (0, 0) at the bottom left. A NaN makes a gap."""

    points: Sequence[Point]
    colour: Rgb


def canvas(curves: Sequence[Curve], columns: int, rows: int) -> Cells:
    """Draw the curves on `columns` × `rows` cells of 2 × 4 dots; later curves cover earlier ones."""
    return [_cells(line) for line in _draw_rows(curves, columns, rows, "braille")]


def ascii_chart(
    points: Sequence[Point],
    width: int = 72,
    height: int = 14,
    *,
    title: str = "loss",
    ascii_only: bool = False,
) -> str:
    """A run's `(step, loss)` as a plain-text chart with axes; logarithmic unless a loss is negative."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return f"{title}: nothing to draw"
    gutter, columns, rows = 8, max(10, width - 9), max(3, height - 2)
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    axis = axis_over([low, high], log=True)
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)
    # x and y are in units of 2 × 4 dots per cell, even in plain ASCII, where a character is a single dot.
    across = (2 * columns - 1) / ((last - first) or 1.0)
    dots = [((x - first) * across, axis.position(y) * (4 * rows - 1)) for x, y in finite]
    lines = _draw_rows([Curve(reduced(dots), (255, 255, 255))], columns, rows, "*" if ascii_only else "braille")
    labels = axis.labels(rows)
    bar = "|" if ascii_only else "│"
    body = [f"{labels.get(n, ''):>{gutter}}{bar}{_SGR.sub('', line)}".rstrip() for n, line in enumerate(lines)]
    left, right = axis_step(round(first)), axis_step(round(last))
    foot = " " * (gutter + 1) + left + " " * max(1, columns - len(left) - len(right)) + right
    return "\n".join([f"{title} ({'logarithmic' if axis.log else 'linear'})", *body, foot])


def reduced(points: Sequence[Point]) -> list[Point]:
    """Keep the lowest and highest point of each dot column: plotext's time grows with the number of points."""
    found: dict[int, tuple[Point, Point]] = {}
    for point in points:
        column = round(point[0])
        low, high = found.get(column, (point, point))
        found[column] = (min(low, point, key=_height), max(high, point, key=_height))
    ordered: list[Point] = []
    for low, high in found.values():
        ordered += [low] if low is high else sorted((low, high))
    return ordered


def _height(point: Point) -> float:
    return point[1]


def _draw_rows(curves: Sequence[Curve], columns: int, rows: int, marker: str) -> list[str]:
    """Rows of ANSI text. If the canvas is smaller than plotext's minimum, they are blank."""
    if columns < 2 or rows < 2:
        return [" " * max(0, columns)] * max(0, rows)
    # Imported here because the import takes 0.2 s and the first frame has no curve yet.
    import plotext

    # Without this call, sizes are limited to that of the terminal.
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, rows)
    figure.canvas("default")
    figure.axes(False)
    # plotext places an axis limit in the middle of the outermost cell. With limits moved inwards by half a cell, x = k
    # falls on dot k.
    for side, limits in ((0, (0.5, 2 * columns - 1.5)), (1, (1.5, 4 * rows - 2.5))):
        figure.ruler(side, 0).lim(*limits)
        for end in (0, 1):
            figure.ruler(side, end).frequency(0)
    for curve in curves:
        for piece in _pieces(curve.points, 2 * columns - 1, 4 * rows - 1):
            pixel = plotext.marker(marker, plotext.pixel(curve.colour))
            signal = figure.signal([x for x, _ in piece], [y for _, y in piece], marker=pixel)
            figure.draw(signal.lines())
    lines = str(figure.build().string()).split("\n")[:rows]
    return lines + [" " * columns] * (rows - len(lines))


def _pieces(points: Sequence[Point], right: int, top: int) -> Iterator[list[Point]]:
    piece: list[Point] = []
    for x, y in points:
        if math.isnan(x) or math.isnan(y) or not 0 <= x <= right:
            if piece:
                yield piece
            piece = []
        else:
            piece.append((x, min(max(y, 0.0), float(top))))
    if piece:
        yield piece


def _cells(line: str) -> list[Segment]:
    style, at, cells = _BLANK, 0, []
    for code in _SGR.finditer(line):
        cells += [Segment(character, style) for character in line[at : code.start()]]
        style, at = _style(code[1]), code.end()
    return cells + [Segment(character, style) for character in line[at:]]


@cache
def _style(code: str) -> Style:
    parts = code.split(";")
    if parts[:2] == ["38", "2"] and len(parts) == 5:
        return Style(color=f"rgb({parts[2]},{parts[3]},{parts[4]})")
    return _BLANK
