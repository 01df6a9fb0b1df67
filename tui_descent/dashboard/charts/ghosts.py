"""Ghosts: the loss curves of undone steps, drawn dim behind the live curve, each labelled with what was undone."""

from __future__ import annotations

import math

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.band_and_line import SMOOTH, Bins
from tui_descent.dashboard.charts.cells import Point
from tui_descent.dashboard.charts.raster import Raster, cell_style
from tui_descent.dashboard.charts.time_axis import TimeAxis
from tui_descent.dashboard.text.safe_text import cut, safe
from tui_descent.dashboard.view import View

LABEL_WIDTH, MAX_LABELS = 36, 3
# Ghosts widen the loss axis by at most this factor. Otherwise a ghost that diverged would flatten the live curve.
MAX_WIDENING = 10.0


def draw_ghosts(raster: Raster, view: View, time_axis: TimeAxis, axis: Axis) -> None:
    """Draw the ghosts."""
    if view.ghosts:
        for bins in _visible_ghosts(view, time_axis):
            raster.line(_dots(bins, time_axis, axis, raster.rows), colours.palette().ghost)


def axis_values(view: View, time_axis: TimeAxis, low: float, high: float) -> list[float]:
    """The ghosts' losses that the axis should include, given the lowest and highest live loss."""
    if not view.ghosts:
        return []
    found = [v[SMOOTH] for bins in _visible_ghosts(view, time_axis) for _, v in bins if math.isfinite(v[SMOOTH])]
    room = MAX_WIDENING * max(abs(low), abs(high))
    return [v for v in found if (low / MAX_WIDENING if low > 0 else -room) <= v <= room]


def _visible_ghosts(view: View, time_axis: TimeAxis) -> list[Bins]:
    found = []
    for ghost in view.history.ghosts:
        pyramid = view.history.losses.get(ghost.segment)
        if pyramid and ghost.last >= time_axis.first_step:
            # Begin one step earlier, so the ghost joins the live curve.
            first = max(ghost.first - 1, time_axis.first_step)
            found.append(pyramid.window(time_axis.steps_per_dot, first, ghost.last))
    if view.compared is not None:
        last = min(view.compared.steps - 1, time_axis.last_step)
        found.append(view.compared.losses.window(time_axis.steps_per_dot, time_axis.first_step, last))
    return found


def _dots(bins: Bins, time_axis: TimeAxis, axis: Axis, rows: int) -> list[Point]:
    """The points of a ghost. Losses outside the axis become gaps: drawn at its edge, they would look like a constant
    loss.
    """
    top = 4 * rows - 1
    return [
        (time_axis.dot(bin_), axis.position(v[SMOOTH]) * top if axis.contains(v[SMOOTH]) else math.nan)
        for bin_, v in bins
    ]


def label_ghosts(raster: Raster, view: View, time_axis: TimeAxis) -> None:
    """Write the newest ghosts' labels where they end, each in the topmost row with room for it."""
    labels = [(ghost.last, ghost.label) for ghost in view.history.ghosts[: -1 - MAX_LABELS : -1]]
    if view.compared is not None:
        labels.insert(0, (view.compared.steps - 1, view.compared.label))
    for last, label in labels:
        end, text = time_axis.column(min(last, time_axis.end_step)), cut(safe(label), LABEL_WIDTH)
        if end is None or last < time_axis.first_step:
            continue
        first = max(0, end - len(text))
        room = range(first, first + len(text))
        if room.stop <= time_axis.columns:
            rows = (row for row in range(raster.rows) if all(raster.is_empty(column, row) for column in room))
            if (row := next(rows, None)) is not None:
                raster.write(first, row, text, cell_style(colours.palette().ghost, None))
