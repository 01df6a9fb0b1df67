"""Plots readings that come rarely, over the loss chart's time axis: curves, step lines and intervention marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard.charts.axis import Axis, numbered_rows
from tui_descent.dashboard.charts.cells import Point
from tui_descent.dashboard.charts.raster import Raster, Rgb
from tui_descent.dashboard.charts.time_axis import TimeAxis, draw_marks, gutter
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.text.clickable import key_word
from tui_descent.dashboard.view import View

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """Values by step, joined by lines. While there are few readings, each is also a dot in the style `style`."""

    points: Points
    colour: Rgb
    style: Style


@dataclass(frozen=True, slots=True)
class StepLine:
    """Values by step that each hold until the next one; the last one holds until now."""

    points: Points
    style: Style


def scale_words(view: View, axis: Axis | None) -> str:
    """The loss scale for a panel's border: `log` or `linear` with its key, or why a log scale is not possible."""
    if view.log and axis is not None and not axis.log:
        return "[dim]linear (≤ 0)[/dim]"
    return key_word("log" if view.log else "linear", "y")


def time_plot(
    view: View, width: int, height: int, axis: Axis, *, series: Sequence[Series], step_lines: Sequence[StepLine]
) -> list[Strip]:
    """`height` rows: the plot, and its time axis in the last row."""
    left, rows = gutter(view, width), height - 1
    time_axis = TimeAxis.of(view.history, width - left, recent=view.recent)
    raster = Raster(time_axis.columns, rows)
    for one in series:
        raster.line(_dots(one.points, time_axis, axis, rows), one.colour)
    for line in step_lines:
        _draw_step_line(raster, line, time_axis, axis)
    draw_marks(raster, view, time_axis)
    for one in series:
        if len(one.points) <= time_axis.columns // 3:
            for step, value in one.points:
                spot = time_axis.column(min(step, time_axis.last_step))
                if spot is not None and math.isfinite(axis.position(value)):
                    raster.write(spot, axis.row(value, rows), "•", one.style)
    return [
        *numbered_rows([raster.segments(row) for row in range(rows)], axis.labels(rows, width=left - 1), left, width),
        time_row(view, time_axis, left, width),
    ]


def _dots(points: Points, time_axis: TimeAxis, axis: Axis, rows: int) -> list[Point]:
    right, top = 2 * time_axis.columns - 1, 4 * rows - 1
    # A reading that was taken before the next update has a step number one higher than the last completed step.
    return [
        (min((step - time_axis.first_step) * 2 // time_axis.bin_width, right), axis.position(value) * top)
        for step, value in points
        if math.isfinite(axis.position(value))
    ]


def _draw_step_line(raster: Raster, line: StepLine, time_axis: TimeAxis, axis: Axis) -> None:
    newest, at = time_axis.last_step // time_axis.bin_width - time_axis.first, 0
    for column in range(min(newest + 1, time_axis.columns)):
        end = (column + time_axis.first + 1) * time_axis.bin_width
        while at + 1 < len(line.points) and line.points[at + 1][0] < end:
            at += 1
        if not line.points or line.points[0][0] >= end:
            continue
        value = line.points[at][1]
        beyond = not axis.log and not axis.low <= value <= axis.high
        if math.isnan(axis.position(value)) or beyond:
            continue
        if raster.is_blank(column, row := axis.row(value, raster.rows)):
            raster.write(column, row, "─", line.style)
