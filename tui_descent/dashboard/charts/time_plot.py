"""Rare readings over the loss panel's time axis: braille curves, levels drawn in cells, the marks of interventions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_axis import Timeline, gutter, marks
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.panels.panel import empty, notice
from tui_descent.dashboard.text.line import Line, joined
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import CurvatureTaken

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """Values by step, joined by lines; `style` draws the readings themselves while they stand apart."""

    points: Points
    colour: braille.Rgb
    style: Style


@dataclass(frozen=True, slots=True)
class Level:
    """A value that holds from its step until the next one's, and the last one's until now."""

    points: Points
    style: Style


def readings(view: View) -> list[CurvatureTaken]:
    """Those of the stretch of the run that is drawn."""
    return [taken for taken in view.history.curvatures if taken.segment == view.history.segment]


def place_of(view: View) -> object:
    """What a drawing of these readings depends on, besides the axis and the person's wishes."""
    history, taken = view.history, view.history.curvatures
    turned = (len(history.interventions), len(history.marks), history.state.state)
    return history, len(taken), taken[-1].step if taken else None, turned, view.connected, view.log, view.recent


def scale_words(view: View, axis: Axis | None) -> str:
    """The scale in the border with its key; where it is linear against the key's word, why."""
    if view.log and axis is not None and not axis.log:
        return "[dim]linear (≤ 0)[/dim]"
    return f"[dim]{'log' if view.log else 'linear'}[/dim] [bold $primary]y[/]"


def nothing_yet(view: View, width: int, height: int) -> list[Strip]:
    """Why there is no curvature to draw."""
    started = view.history.started
    if started is not None and started.scenario is None:
        lines = [
            ("no curvature of an own loop", colours.TEXT),
            ("it needs one batch again and again, and a loop's cannot be asked for", colours.DIM),
        ]
        return notice(lines, width, height)
    if not view.history.live:
        return notice([("the curvature was not read while the run lived", colours.DIM)], width, height)
    return empty(view, width, height, "curvature")


def plotted(
    view: View, width: int, height: int, axis: Axis, *, series: Sequence[Series], levels: Sequence[Level]
) -> list[Strip]:
    """`height` rows: the picture and its time axis."""
    left, rows = gutter(view, width), height - 1
    timeline = Timeline.of(view.history, width - left, recent=view.recent)
    curves = [braille.Curve(_dots(s.points, timeline, axis, rows), s.colour) for s in series]
    drawn = braille.canvas(curves, timeline.columns, rows)
    cells = [[Segment(c, s.style) for s in line for c in s.text] for line in drawn]
    for level in levels:
        _lay(cells, level, timeline, axis, rows)
    for column in {column for column, _ in marks(view, timeline)}:
        for y in range(rows):
            if cells[y][column].text == " ":
                cells[y][column] = Segment("┊", colours.MARK)
    for one in series:
        if len(one.points) <= timeline.columns // 3:
            for step, value in one.points:
                spot = timeline.column(min(step, timeline.last_step))
                if spot is not None and math.isfinite(axis.place(value)):
                    cells[axis.row(value, rows)][spot] = Segment("•", one.style)
    figures = axis.labels(rows, width=left - 1)
    lines = [
        Line().put(f"{figures.get(y, ''):>{left - 1}} ", colours.DIM).extend(joined(cells[y])).strip(width)
        for y in range(rows)
    ]
    return [*lines, time_row(view, timeline, left).strip(width)]


def _dots(points: Points, timeline: Timeline, axis: Axis, rows: int) -> list[braille.Point]:
    right, top = 2 * timeline.columns - 1, 4 * rows - 1
    # The reading before the next update lies one step to the right of the last one that was made.
    return braille.reduced(
        [
            (float(min((step - timeline.first_step) * 2 // timeline.width, right)), axis.place(value) * top)
            for step, value in points
            if math.isfinite(axis.place(value))
        ]
    )


def _lay(cells: list[list[Segment]], level: Level, timeline: Timeline, axis: Axis, rows: int) -> None:
    newest, at = timeline.last_step // timeline.width - timeline.first, 0
    for column in range(min(newest + 1, timeline.columns)):
        end = (column + timeline.first + 1) * timeline.width
        while at + 1 < len(level.points) and level.points[at + 1][0] < end:
            at += 1
        if not level.points or level.points[0][0] >= end:
            continue
        value = level.points[at][1]
        beyond = not axis.log and not axis.low <= value <= axis.high
        if math.isnan(axis.place(value)) or beyond:
            continue
        if cells[y := axis.row(value, rows)][column].text == " ":
            cells[y][column] = Segment("─", level.style)
