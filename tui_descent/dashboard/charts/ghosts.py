"""Stretches that were left behind, dim behind the live curve, each with what was undone."""

from __future__ import annotations

import math

from rich.segment import Segment

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.loss_curve import SMOOTH, Bins, Cells
from tui_descent.dashboard.charts.time_axis import Timeline
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.telemetry.history import History

LABEL, LABELS = 36, 3
BLANK = (" ", "⠀")
# A ghost widens the loss axis by no more than this: one that diverged must not flatten the live curve.
WIDENS = 10.0


class Ghosts:
    """A memo of their picture: what was left behind changes no more."""

    def __init__(self) -> None:
        self._key: object = None
        self._cells: Cells = []

    def put_behind(self, cells: Cells, view: View, timeline: Timeline, axis: Axis, rows: int) -> None:
        """Fill blank cells in place."""
        history = view.history
        if not view.ghosts or not history.ghosts:
            return
        key = (id(history), history.ghosts, timeline.width, timeline.first, timeline.columns, axis, rows)
        if key != self._key:
            self._key = key
            curves = [
                braille.Curve(_dots(bins, timeline, axis, rows), colours.GHOST) for bins in _stretches(view, timeline)
            ]
            drawn = braille.canvas(curves, timeline.columns, rows)
            self._cells = [[Segment(c, s.style) for s in line for c in s.text] for line in drawn]
        for row, behind in zip(cells, self._cells, strict=True):
            for column, cell in enumerate(behind):
                if row[column].text in BLANK and cell.text not in BLANK:
                    row[column] = cell
        _label(cells, history, timeline)


def values(view: View, timeline: Timeline, low: float, high: float) -> list[float]:
    """Those of the ghosts that the axis should hold, given the live curve's ends."""
    if not view.ghosts:
        return []
    found = [v[SMOOTH] for bins in _stretches(view, timeline) for _, v in bins if math.isfinite(v[SMOOTH])]
    room = WIDENS * max(abs(low), abs(high))
    return [v for v in found if (low / WIDENS if low > 0 else -room) <= v <= room]


def _stretches(view: View, timeline: Timeline) -> list[Bins]:
    found = []
    for ghost in view.history.ghosts:
        pyramid = view.history.losses.get(ghost.segment)
        if pyramid and ghost.last >= timeline.first_step:
            # From the step before on, so that it hangs together with the live curve.
            first = max(ghost.first - 1, timeline.first_step)
            found.append(pyramid.window(timeline.steps_a_dot, first, ghost.last))
    return found


def _dots(bins: Bins, timeline: Timeline, axis: Axis, rows: int) -> list[braille.Point]:
    """What lies beyond the axis is a gap: on its edge it would look like a loss that stands still."""
    top = 4 * rows - 1
    return [
        (timeline.dot(bin_), axis.place(v[SMOOTH]) * top if axis.holds(v[SMOOTH]) else math.nan) for bin_, v in bins
    ]


def _label(cells: Cells, history: History, timeline: Timeline) -> None:
    """The newest ones' names where they end, each in the highest row that has room for it."""
    for ghost in history.ghosts[: -1 - LABELS : -1]:
        end, text = timeline.column(min(ghost.last, _end(timeline))), plain(ghost.label, LABEL)
        if end is None or ghost.last < timeline.first_step:
            continue
        first = max(0, end - len(text))
        room = slice(first, first + len(text))
        row = next((row for row in cells if all(cell.text in BLANK for cell in row[room])), None)
        if row is not None and room.stop <= timeline.columns:
            row[room] = [Segment(character, colours.FAINT) for character in text]


def _end(timeline: Timeline) -> int:
    return (timeline.first + timeline.columns) * timeline.width - 1
