"""The band and the smoothed line of the loss chart as braille cells. Columns that cannot change are drawn only once."""

from __future__ import annotations

from rich.segment import Segment

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_axis import TimeAxis

# Channels of the loss pyramid.
MIN, MAX, _, SMOOTH = range(4)
# More than this many dots without a step leave a gap in the curve, unless bins are usually that far apart.
GAP_DOTS = 4

Bins = list[tuple[int, list[float]]]


class LossCurve:
    """The band of raw losses and the smoothed line; caches the columns that are final."""

    def __init__(self) -> None:
        self._key: object = None
        self._cells: braille.Cells = []
        self._final = 0

    def cells(self, bins: Bins, time_axis: TimeAxis, axis: Axis, rows: int) -> braille.Cells:
        """Draw the curves with one segment per cell. The caller may modify the rows, for example to draw marks."""
        key = (time_axis.bin_width, time_axis.first, time_axis.columns, axis, rows, bins[0][0] if bins else None)
        if key != self._key:
            self._key, self._final = key, 0
            self._cells = [[Segment(" ")] * time_axis.columns for _ in range(rows)]
        first = self._first_needed(bins, time_axis)
        if first < len(bins):
            left = min(time_axis.dot(bins[first][0]) // 2, time_axis.columns - 2)
            right = max(left + 2, time_axis.dot(bins[-1][0]) // 2 + 1)
            fresh = braille.canvas(_dot_curves(bins[first:], time_axis, axis, rows, 2 * left), right - left, rows)
            for row, cells in zip(self._cells, fresh, strict=True):
                row[self._final : right] = cells[self._final - left : right - left]
        if len(bins) >= 2:
            # Everything to the left of the second-last bin is final.
            self._final = max(self._final, time_axis.dot(bins[-2][0]) // 2)
        return [list(row) for row in self._cells]

    def _first_needed(self, bins: Bins, time_axis: TimeAxis) -> int:
        """The index of the bin where the redrawn line begins: the last one to the left of the columns to redraw."""
        n = len(bins) - 1
        while n > 0 and time_axis.dot(bins[n][0]) >= 2 * self._final:
            n -= 1
        return max(n, 0)


def _dot_curves(bins: Bins, time_axis: TimeAxis, axis: Axis, rows: int, left: int) -> list[braille.Curve]:
    band: list[braille.Point] = []
    smooth: list[braille.Point] = []
    top, before, usual_distance = 4 * rows - 1, None, GAP_DOTS
    for bin_, values in bins:
        x = time_axis.dot(bin_) - left
        if before is not None:
            if x - before > max(GAP_DOTS, 2 * usual_distance):
                band.append((float("nan"), 0.0))
                smooth.append((float("nan"), 0.0))
            else:
                usual_distance = x - before
        before = x
        low, high = axis.position(values[MIN]) * top, axis.position(values[MAX]) * top
        # The line goes up in one bin and down in the next, so neighbouring bins are joined at their near ends.
        band += [(x, low), (x, high)] if bin_ % 2 else [(x, high), (x, low)]
        smooth.append((x, axis.position(values[SMOOTH]) * top))
    return [braille.Curve(band, colours.BAND), braille.Curve(smooth, colours.CURVE)]
