"""The loss chart: a band of raw losses, the smoothed loss, held-out losses as points, interventions as dashed lines.

Band and smoothed line are drawn by `charts/band_and_line.py`.
"""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over, numbered_rows
from tui_descent.dashboard.charts.band_and_line import MAX, MIN, SMOOTH, draw_curve
from tui_descent.dashboard.charts.ghosts import axis_values, draw_ghosts, label_ghosts
from tui_descent.dashboard.charts.raster import Raster, cell_style
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS, BinCache, TimeAxis, draw_marks, gutter
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.charts.time_plot import scale_words
from tui_descent.dashboard.panels.panel import Panel, waiting_notice
from tui_descent.dashboard.text.clickable import key_word, legend_entry
from tui_descent.dashboard.text.numbers import short
from tui_descent.dashboard.view import View

# Held-out points must not cover the curve: at most one point in POINT_EVERY columns, at least POINT_DISTANCE columns
# from the next.
POINT_EVERY, POINT_DISTANCE = 5, 3
RAW, SMOOTHED, HELD_OUT = "raw", "smooth", "held-out"


class LossPanel(Panel):
    """The training loss of every update."""

    lines = RAW, SMOOTHED, HELD_OUT
    help_text = (
        "Training loss of every update. Dark band: from the lowest to the highest loss of the steps in a column. "
        "Bright: smoothed loss, a moving average over about 20 steps; if five losses in a row are far from it, it "
        "restarts at their level. The number at its end is the smoothed loss now. ○ loss on held-out data. "
        "┊ an intervention. Faint: undone steps (g hides them). A click on the legend hides a line, v shows one alone. "
        "Unit: nats for cross-entropy."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = BinCache()
        self._axis: Axis | None = None
        self._strips: dict[int, tuple[object, Strip]] = {}  # by row, with what it depends on

    def heading(self, view: View) -> tuple[str, str]:
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        legend = [
            legend_entry(view.hidden, RAW, f"{colours.band_sample()} "),
            legend_entry(view.hidden, SMOOTHED, "[$primary]━[/] "),
        ]
        if view.history.evaluations:
            legend.append(legend_entry(view.hidden, HELD_OUT, "○ "))
        if view.history.ghosts:
            undone = "undone" if view.ghosts else "· [strike]undone[/]"
            legend.append(key_word(undone, "g"))
        elif view.compared is not None:
            legend.append(key_word("other run" if view.ghosts else "· [strike]other run[/]", "g"))
        return f"Loss  {scale_words(view, self._axis)}  {key_word(span, 't')}", "  ".join(legend)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        pyramid = view.history.losses.get(view.history.segment)
        if not pyramid and not (view.ghosts and view.history.ghosts):  # after an undo to step 0 there are only ghosts
            return waiting_notice(view, width, height, "step", state=True)
        left = gutter(view, width)
        # With data there is a heat map below, on the same axis, with a column per step.
        started = view.history.started
        on_surface = started is not None and started.scenario is not None and started.scenario.get("data") is None
        planned = started.steps if started is not None and on_surface else None
        time_axis = TimeAxis.of(view.history, width - left, recent=view.recent, planned=planned)
        rows = height - 1
        bins: list[tuple[int, list[float]]] = []
        if pyramid:
            bins = self._columns.read(pyramid, time_axis.steps_per_dot, time_axis.first_step, time_axis.last_step)
        points = _held_out(view, time_axis)
        axis = self._axis = _axis(bins, points, view, time_axis)
        numbers = axis.labels(rows, width=left - 1)
        raster = Raster(time_axis.columns, rows, paper=colours.PAPER, shaded=colours.palette().shaded)
        draw_ghosts(raster, view, time_axis, axis)
        # A step that is wider than a column has a single loss, so there is no range to draw.
        band = RAW not in view.hidden and time_axis.spread == 1
        draw_curve(raster, bins, time_axis, axis, band=band, line=SMOOTHED not in view.hidden)
        draw_marks(raster, view, time_axis)
        for column, value in points if HELD_OUT not in view.hidden else ():
            if not math.isnan(axis.position(value)):
                raster.write(column, axis.row(value, rows), "○", colours.POINT)
        if view.ghosts:
            label_ghosts(raster, view, time_axis)
        if SMOOTHED not in view.hidden:
            _write_newest(raster, view, time_axis, axis)
        _draw_grid(raster, numbers)
        return [*self._rows_of(raster, numbers, left, width), time_row(view, time_axis, left, width)]

    def _rows_of(self, raster: Raster, numbers: dict[int, str], left: int, width: int) -> list[Strip]:
        """The rows with the axis numbers. Rows that look the same as before are the same objects."""
        for row in range(raster.rows):
            key = (raster.row_key(row), numbers.get(row), left, width)
            if row not in self._strips or self._strips[row][0] != key:
                (strip,) = numbered_rows([raster.segments(row)], {0: numbers.get(row, "")}, left, width)
                self._strips[row] = key, strip
        return [self._strips[row][1] for row in range(raster.rows)]


def _write_newest(raster: Raster, view: View, time_axis: TimeAxis, axis: Axis) -> None:
    """Write the smoothed loss at the end of its line, if there is room beside or near it."""
    value, newest = view.history.smooth_loss, time_axis.column(time_axis.last_step)
    if newest is None or math.isnan(axis.position(value)):
        return
    text, row = short(value, digits=3), axis.row(value, raster.rows)
    beside = newest + 2
    column = beside if beside + len(text) <= raster.columns else raster.columns - len(text)
    # Above or below the end of the line it needs a distance; otherwise the line would soon cover it.
    near = [0] if column == beside else [n for distance in (2, 3, 4) for n in (-distance, distance)]
    for place in (row + n for n in near):
        room = range(column, column + len(text))
        if 0 <= place < raster.rows and column >= 0 and all(raster.is_blank(n, place) for n in room):
            raster.write(column, place, text, colours.CURVE_TEXT)
            return


def _draw_grid(raster: Raster, numbers: dict[int, str]) -> None:
    """Draw faint lines at the numbers of the axis, where nothing else is; not in adjacent rows."""
    grid, before = colours.palette().grid, -2
    for row in sorted(numbers) if grid is not None else ():
        if row == before + 1:
            continue
        before = row
        for column in range(raster.columns):
            if raster.is_empty(column, row):
                raster.write(column, row, "┈", cell_style(grid, None))


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
    if view.history.ghosts or view.compared is not None:
        low, high = (min(found), max(found)) if found else (-math.inf, math.inf)
        found += axis_values(view, time_axis, low, high)
    return axis_over(found, log=view.log)
