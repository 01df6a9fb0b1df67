"""The loss chart: raw range dim, smoothed loss bright, held-out loss as points, interventions as dashed lines.

Band and smoothed line are drawn by `charts/band_and_line.py`.
"""

from __future__ import annotations

import math

from rich.segment import Segment
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over, numbered_rows
from tui_descent.dashboard.charts.band_and_line import MAX, MIN, SMOOTH, LossCurve
from tui_descent.dashboard.charts.ghosts import Ghosts, axis_values
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS, BinCache, TimeAxis, draw_marks, gutter
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.charts.time_plot import scale_words
from tui_descent.dashboard.panels.panel import Panel, waiting_notice
from tui_descent.dashboard.view import View

# Held-out points must not cover the curve: at most one point in POINT_EVERY columns, at least POINT_DISTANCE columns
# from the next.
POINT_EVERY, POINT_DISTANCE = 5, 3


class LossPanel(Panel):
    """The training loss of every update."""

    help_text = (
        "Training loss of every update. Dim: range from the lowest to the highest loss of the steps in a column. "
        "Bright: smoothed loss, a moving average over 20 steps. Five losses after a jump, it restarts at the new "
        "level. ○ loss on held-out data. ┊ an intervention. Faint: undone steps (g hides them). Unit: nats for "
        "cross-entropy."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = BinCache()
        self._curves = LossCurve()
        self._ghosts = Ghosts()
        self._segment_key: object = None
        self._axis: Axis | None = None

    def heading(self, view: View) -> tuple[str, str]:
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        return (
            f"Loss  {scale_words(view, self._axis)}  [dim]{span}[/dim] [bold $primary]t[/]",
            f"⣿ raw  ━ smooth{'  ○ held-out' if view.history.evaluations else ''}",
        )

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        pyramid = view.history.losses.get(view.history.segment)
        if not pyramid:
            return waiting_notice(view, width, height, "step", state=True)
        left = gutter(view, width)
        time_axis = TimeAxis.of(view.history, width - left, recent=view.recent)
        rows = height - 1
        bins = self._columns.read(pyramid, time_axis.steps_per_dot, time_axis.first_step, time_axis.last_step)
        points = _held_out(view, time_axis)
        axis = self._axis = _axis(bins, points, view, time_axis)
        if self._segment_key != (key := (id(view.history), view.history.segment)):
            self._segment_key, self._curves = key, LossCurve()  # its final columns belong to another segment
        cells = self._curves.cells(bins, time_axis, axis, rows)
        self._ghosts.draw_behind(cells, view, time_axis, axis, rows)
        draw_marks(cells, view, time_axis)
        for column, value in points:
            if not math.isnan(axis.position(value)):
                cells[axis.row(value, rows)][column] = Segment("○", colours.POINT)
        chart = numbered_rows(cells, axis.labels(rows, width=left - 1), left, width)
        return [*chart, time_row(view, time_axis, left, width)]


def _held_out(view: View, time_axis: TimeAxis) -> list[tuple[int, float]]:
    """Held-out losses by column: the first of every few columns and the newest. The first does not move later."""
    firsts: dict[int, tuple[int, float]] = {}
    newest: tuple[int, float] | None = None
    for e in view.history.evaluations:
        column = time_axis.column(e.step)
        if e.segment == view.history.segment and column is not None and math.isfinite(e.loss):
            newest = column, e.loss
            firsts.setdefault((column + time_axis.first) // POINT_EVERY, newest)
    shown: list[tuple[int, float]] = []
    for point in firsts.values():
        if not shown or point[0] - shown[-1][0] >= POINT_DISTANCE:
            shown.append(point)
    if newest is not None:
        while shown and newest[0] - shown[-1][0] < POINT_DISTANCE:
            shown.pop()
        shown.append(newest)
    return shown


def _axis(
    bins: list[tuple[int, list[float]]], points: list[tuple[int, float]], view: View, time_axis: TimeAxis
) -> Axis:
    found = [v for _, b in bins for v in (b[MIN], b[MAX], b[SMOOTH]) if math.isfinite(v)]
    found += [v for _, v in points]
    if found and view.history.ghosts:
        found += axis_values(view, time_axis, min(found), max(found))
    return axis_over(found, log=view.log)
