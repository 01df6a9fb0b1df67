"""The loss as braille cells. Columns that can no longer change are drawn once: plotext's time is by the point."""

from __future__ import annotations

from rich.segment import Segment

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_axis import Timeline

# Channels of the loss pyramid.
MIN, MAX, _, SMOOTH = range(4)
# So many dots without a step are a gap in what is known, unless the bins stand so far apart.
GAP_DOTS = 4

Bins = list[tuple[int, list[float]]]
Cells = list[list[Segment]]


class Curves:
    """Band and smoothed line; a memo of the columns that are final."""

    def __init__(self) -> None:
        self._key: object = None
        self._still: Cells = []
        self._final = 0

    def cells(self, bins: Bins, timeline: Timeline, axis: Axis, rows: int) -> Cells:
        """One segment a cell, so that marks can be laid over; the rows are the caller's own."""
        key = (timeline.width, timeline.first, timeline.columns, axis, rows, bins[0][0] if bins else None)
        if key != self._key:
            self._key, self._final = key, 0
            self._still = [[Segment(" ")] * timeline.columns for _ in range(rows)]
        first = self._first_needed(bins, timeline)
        if first < len(bins):
            left = min(timeline.dot(bins[first][0]) // 2, timeline.columns - 2)
            right = max(left + 2, timeline.dot(bins[-1][0]) // 2 + 1)
            fresh = braille.canvas(_curves(bins[first:], timeline, axis, rows, 2 * left), right - left, rows)
            for row, line in zip(self._still, fresh, strict=True):
                cells = [Segment(c, s.style) for s in line for c in s.text]
                row[self._final : right] = cells[self._final - left : right - left]
        if len(bins) >= 2:
            # Lines up to the last but one bin are final, so columns left of it are.
            self._final = max(self._final, timeline.dot(bins[-2][0]) // 2)
        return [list(row) for row in self._still]

    def _first_needed(self, bins: Bins, timeline: Timeline) -> int:
        """The last bin left of what must be drawn: a line begins there."""
        n = len(bins) - 1
        while n > 0 and timeline.dot(bins[n][0]) >= 2 * self._final:
            n -= 1
        return max(n, 0)


def _curves(bins: Bins, timeline: Timeline, axis: Axis, rows: int, left: int) -> list[braille.Curve]:
    band: list[braille.Point] = []
    smooth: list[braille.Point] = []
    top, before, usual = 4 * rows - 1, None, GAP_DOTS
    for bin_, values in bins:
        x = timeline.dot(bin_) - left
        if before is not None:
            if x - before > max(GAP_DOTS, 2 * usual):
                band.append((float("nan"), 0.0))
                smooth.append((float("nan"), 0.0))
            else:
                usual = x - before
        before = x
        low, high = axis.place(values[MIN]) * top, axis.place(values[MAX]) * top
        # Up and down in turn, so that neighbours join at their near ends.
        band += [(x, low), (x, high)] if bin_ % 2 else [(x, high), (x, low)]
        smooth.append((x, axis.place(values[SMOOTH]) * top))
    return [braille.Curve(band, colours.BAND), braille.Curve(smooth, colours.CURVE)]
