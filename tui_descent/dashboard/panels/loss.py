"""The loss over time: raw range dim, smoothed line bright, held-out points, interventions as dashed lines."""

from __future__ import annotations

import math

from rich.segment import Segment
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over
from tui_descent.dashboard.charts.ghosts import Ghosts, values
from tui_descent.dashboard.charts.loss_curve import MAX, MIN, SMOOTH, Curves
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS, Columns, Timeline, gutter, marks
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.charts.time_plot import scale_words
from tui_descent.dashboard.panels.panel import Panel, empty
from tui_descent.dashboard.text.line import Line, joined
from tui_descent.dashboard.view import View

# Held-out points would cover the curve: one in so many columns, and no two closer than this.
SPREAD, APART = 5, 3


class LossPanel(Panel):
    """Cross-entropy, or what the scenario minimises, of every update."""

    about = (
        "Training loss of every update. Dim: lowest and highest raw loss of the steps in a column. Bright: smoothed "
        "(moving average of 20 steps; a jump is followed within five). ○ loss on held-out data. "
        "┊ an intervention. Faint: what an undo left behind (g hides it). Units: nats for cross-entropy."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = Columns()
        self._curves = Curves()
        self._ghosts = Ghosts()
        self._of: object = None
        self._axis: Axis | None = None

    def heading(self, view: View) -> tuple[str, str]:
        """Scale and span above, the legend below."""
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        return (
            f"Loss  {scale_words(view, self._axis)}  [dim]{span}[/dim] [bold $primary]t[/]",
            "⣿ raw  ━ smooth  ○ held-out",
        )

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The curve above, the axis row below."""
        pyramid = view.history.losses.get(view.history.segment)
        if not pyramid:
            return empty(view, width, height, "step", state=True)
        left = gutter(view, width)
        timeline = Timeline.of(view.history, width - left, recent=view.recent)
        rows = height - 1
        bins = self._columns.read(pyramid, timeline.steps_a_dot, timeline.first_step, timeline.last_step)
        points = _held_out(view, timeline)
        axis = self._axis = _axis(bins, points, view, timeline)
        if self._of != (of := (id(view.history), view.history.segment)):
            self._of, self._curves = of, Curves()  # what it holds as final is of another stretch
        cells = self._curves.cells(bins, timeline, axis, rows)
        self._ghosts.put_behind(cells, view, timeline, axis, rows)
        for column in {column for column, _ in marks(view, timeline)}:
            for y in range(rows):
                if cells[y][column].text == " ":
                    cells[y][column] = Segment("┊", colours.MARK)
        for column, value in points:
            if not math.isnan(axis.place(value)):
                cells[axis.row(value, rows)][column] = Segment("○", colours.POINT)
        figures = axis.labels(rows, width=left - 1)
        lines = [
            Line().put(f"{figures.get(y, ''):>{left - 1}} ", colours.DIM).extend(joined(cells[y])).strip(width)
            for y in range(rows)
        ]
        return [*lines, time_row(view, timeline, left).strip(width)]


def _held_out(view: View, timeline: Timeline) -> list[tuple[int, float]]:
    """By column, in order: of those in so many columns the first, so that they stay where they are, and the newest."""
    firsts: dict[int, tuple[int, float]] = {}
    newest: tuple[int, float] | None = None
    for e in view.history.evaluations:
        column = timeline.column(e.step)
        if e.segment == view.history.segment and column is not None and math.isfinite(e.loss):
            newest = column, e.loss
            firsts.setdefault((column + timeline.first) // SPREAD, newest)
    shown: list[tuple[int, float]] = []
    for point in firsts.values():
        if not shown or point[0] - shown[-1][0] >= APART:
            shown.append(point)
    if newest is not None:
        while shown and newest[0] - shown[-1][0] < APART:
            shown.pop()
        shown.append(newest)
    return shown


def _axis(bins: list[tuple[int, list[float]]], points: list[tuple[int, float]], view: View, timeline: Timeline) -> Axis:
    found = [v for _, b in bins for v in (b[MIN], b[MAX], b[SMOOTH]) if math.isfinite(v)]
    found += [v for _, v in points]
    if found and view.history.ghosts:
        found += values(view, timeline, min(found), max(found))
    return axis_over(found, log=view.log)
