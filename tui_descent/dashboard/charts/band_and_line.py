"""The loss curve: a band from the lowest to the highest loss of each column, and the smoothed loss as a line."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.raster import Raster
from tui_descent.dashboard.charts.time_axis import TimeAxis

# Channels of the loss pyramid.
MIN, MAX, _, SMOOTH = range(4)
# More than this many dots without a step leave a gap in the curve, unless bins are usually that far apart.
GAP_DOTS = 4
LINE_DOTS = 2  # the thickness of the smoothed line

Bins = list[tuple[int, list[float]]]


def draw_curve(
    raster: Raster, bins: Bins, time_axis: TimeAxis, axis: Axis, *, band: bool = True, line: bool = True
) -> None:
    """Draw the band, and the line over it; or only one of them."""
    top = 4 * raster.rows - 1
    pieces = list(_pieces(bins, time_axis))
    for piece in pieces if band else ():
        for column, low, high in _ranges(piece, axis, top):
            raster.fill(column, low, high + 1, colours.palette().band)
    for piece in pieces if line else ():
        points = [(x, axis.position(values[SMOOTH]) * top) for x, values in piece]
        raster.line(points, colours.CURVE, thickness=LINE_DOTS)


def _pieces(bins: Bins, time_axis: TimeAxis) -> Iterator[Bins]:
    """The bins by dot column, split where steps are missing."""
    piece: Bins = []
    usual_distance = max(GAP_DOTS, 2 * time_axis.spread)
    for bin_, values in bins:
        x = time_axis.dot(bin_)
        if piece:
            if x - piece[-1][0] > max(GAP_DOTS, 2 * usual_distance):
                yield piece
                piece = []
            else:
                usual_distance = x - piece[-1][0]
        piece.append((x, values))
    if piece:
        yield piece


def _ranges(piece: Bins, axis: Axis, top: int) -> list[tuple[int, float, float]]:
    """The band as column, low and high in dots. Neighbours that do not overlap are joined half way between them."""
    found: list[tuple[int, float, float]] = []
    for x, values in piece:
        column, low, high = x // 2, axis.position(values[MIN]) * top, axis.position(values[MAX]) * top
        if math.isnan(low) or math.isnan(high):
            continue
        if found and found[-1][0] == column:
            found[-1] = column, min(low, found[-1][1]), max(high, found[-1][2])
            continue
        if found:
            # A bin may cover several columns.
            found += [(between, *found[-1][1:]) for between in range(found[-1][0] + 1, column)]
        found.append((column, low, high))
    for n in range(1, len(found)):
        (before, low, high), (column, next_low, next_high) = found[n - 1], found[n]
        if next_low > high:
            high = next_low = (high + next_low) / 2
        elif low > next_high:
            low = next_high = (low + next_high) / 2
        found[n - 1], found[n] = (before, low, high), (column, next_low, next_high)
    return found
