"""The loss over time: raw range dim, smoothed line bright, held-out points, interventions as dashed lines."""

from __future__ import annotations

import math

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import charts, ink
from tui_descent.dashboard.axis import Axis, log_axis
from tui_descent.dashboard.panels.line import Line
from tui_descent.dashboard.panels.strips import Panel, empty
from tui_descent.dashboard.panels.timeline import RECENT_STEPS, Columns, Timeline, gutter, marks
from tui_descent.dashboard.panels.view import View
from tui_descent.dashboard.plain import plain

MIN, MAX, _, SMOOTH = range(4)


class LossPanel(Panel):
    """Cross-entropy, or what the scenario minimises, of every update."""

    about = (
        "Training loss of every update. Dim: lowest and highest raw loss of the steps in a column. Bright: smoothed "
        "(exponential, 0.95). ○ loss on held-out data. ┊ an intervention. Units: nats for cross-entropy."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = Columns()

    def heading(self, view: View) -> tuple[str, str]:
        """Scale and span above, the legend below."""
        span = f"last {RECENT_STEPS} steps" if view.recent else "whole run"
        return f"Loss  {'log' if view.log else 'linear'} [dim]y  {span} t[/dim]", "⣿ raw  ━ smooth  ○ held-out"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The curve above, the axis row below."""
        pyramid = view.history.losses.get(view.history.segment)
        if not pyramid:
            return empty(view, width, height, "step")
        left = gutter(view, width)
        timeline = Timeline.of(view.history, width - left, recent=view.recent)
        rows = height - 1
        per_dot = max(1, timeline.width // 2)
        bins = self._columns.read(pyramid, per_dot, timeline.first_step, timeline.last_step)
        points = _held_out(view, timeline)
        axis = _axis(bins, points, log=view.log)
        cells = _cells(_curves(bins, timeline, axis, per_dot, rows), timeline.columns, rows)
        for column in {column for column, _ in marks(view, timeline)}:
            for y in range(rows):
                if cells[y][column].text == " ":
                    cells[y][column] = Segment("┊", ink.MARK)
        for column, value in points:
            if not math.isnan(place := axis.place(value)):
                cells[round((1 - place) * (rows - 1))][column] = Segment("○", ink.POINT)
        figures = axis.labels(rows)
        lines = [
            Line().put(f"{figures.get(y, ''):>{left - 1}} ", ink.DIM).extend(_joined(cells[y])).strip(width)
            for y in range(rows)
        ]
        return [*lines, time_row(view, timeline, left).strip(width)]


def time_row(view: View, timeline: Timeline, left: int) -> Line:
    """Step numbers, and under each intervention its name."""
    cells = [(" ", ink.DIM)] * timeline.columns
    taken = [False] * timeline.columns

    def write(column: int, text: str, style: Style) -> bool:
        end = column + len(text)
        if end > timeline.columns or any(taken[max(0, column - 1) : end + 1]):
            return False
        for n, character in enumerate(text):
            cells[column + n] = (character, style)
            taken[column + n] = True
        return True

    # The newest interventions matter most where there is no room for all of them.
    for column, text in reversed(marks(view, timeline)):
        label = plain(f"▲ {text}", 30)
        if write(column, label, ink.MARK):
            continue
        if not (write(column - len(label) + 1, label[2:] + " ▲", ink.MARK) if column >= len(label) else False):
            write(column, "▲", ink.MARK)
    for column, text in timeline.ticks().items():
        write(column, text, ink.DIM)
    return Line().put(" " * left).extend(_joined([Segment(c, s) for c, s in cells]))


def _held_out(view: View, timeline: Timeline) -> list[tuple[int, float]]:
    return [
        (column, e.loss)
        for e in view.history.evaluations
        if e.segment == view.history.segment and (column := timeline.column(e.step)) is not None
        if math.isfinite(e.loss)
    ]


def _axis(bins: list[tuple[int, list[float]]], points: list[tuple[int, float]], *, log: bool) -> Axis:
    values = [v for _, b in bins for v in (b[MIN], b[MAX], b[SMOOTH]) if math.isfinite(v)]
    values += [v for _, v in points]
    if log:
        positive = [v for v in values if v > 0]
        if positive:
            return log_axis(min(positive), max(positive))
    return Axis.linear(min(values, default=0.0), max(values, default=1.0))


def _curves(
    bins: list[tuple[int, list[float]]], timeline: Timeline, axis: Axis, per_dot: int, rows: int
) -> list[charts.Curve]:
    band: list[charts.Point] = []
    smooth: list[charts.Point] = []
    dots_a_bin = 2 if timeline.width == 1 else 1
    for n, (bin_, values) in enumerate(bins):
        x = float((bin_ * per_dot - timeline.first_step) // per_dot * dots_a_bin)
        low, high = ((axis.place(values[c]) * (4 * rows - 1)) for c in (MIN, MAX))
        band += [(x, low), (x, high)] if n % 2 else [(x, high), (x, low)]
        smooth.append((x, axis.place(values[SMOOTH]) * (4 * rows - 1)))
    return [charts.Curve(band, ink.BAND), charts.Curve(smooth, ink.CURVE)]


def _cells(curves: list[charts.Curve], columns: int, rows: int) -> list[list[Segment]]:
    """One segment a cell, so that marks can be laid over."""
    cells = []
    for line in charts.canvas(curves, columns, rows):
        row = [Segment(c, s.style) for s in line for c in s.text]
        cells.append((row + [Segment(" ")] * columns)[:columns])
    return cells


def _joined(cells: list[Segment]) -> list[Segment]:
    """Neighbours in one style as one segment: fewer bytes on the wire."""
    joined: list[Segment] = []
    for cell in cells:
        if joined and (joined[-1].style == cell.style):
            joined[-1] = Segment(joined[-1].text + cell.text, cell.style)
        else:
            joined.append(cell)
    return joined
