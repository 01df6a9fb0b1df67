"""The panels of a race: the loss of each lane over time, the table of its lanes, and the map of a test surface."""

from __future__ import annotations

import math

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over, numbered_rows
from tui_descent.dashboard.charts.raster import Raster
from tui_descent.dashboard.charts.time_axis import TimeAxis, gutter
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.charts.time_plot import scale_words
from tui_descent.dashboard.lane_marks import lane_mark
from tui_descent.dashboard.panels.panel import Panel, waiting_notice
from tui_descent.dashboard.panels.task import TaskPanel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.telemetry.race_history import LaneHistory, first_to_reach

MARK_EVERY = 14  # columns from one glyph of a curve to the next
ABOVE_START = 4.0  # the axis ends this many times the first loss above it
HEADS = ("", "rate", "steps", "loss")
Points = list[tuple[float, float]]  # step and loss


class RaceMapPanel(TaskPanel):
    """The map of a test surface with the path of each lane."""

    help_text = (
        "The contour map of the test surface (dark is low) and the path of each lane of the race, in the colour and "
        "with the glyph of the table. All lanes begin at the circle. The map does not follow a lane that leaves it."
    )

    def heading(self, view: View) -> tuple[str, str]:
        _, legend = super().heading(view)
        return "Map  [dim]the path of each lane[/dim]", legend


class RaceChartPanel(Panel):
    """The loss of each lane over time."""

    help_text = (
        "The training loss of each lane, in the colour and with the glyph of the table. All lanes begin with the same "
        "weights and see the same batches; only the optimizer differs. The dashed line is the target. y switches the "
        "axis between logarithmic and linear."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._axis: Axis | None = None

    def heading(self, view: View) -> tuple[str, str]:
        return f"Loss  {scale_words(view, self._axis)}", "same start, same batches"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        lanes = view.history.lanes
        if not any(lane.steps for lane in lanes):
            return waiting_notice(view, width, height, "step", state=True)
        left, rows = gutter(view, width), height - 1
        time_axis = TimeAxis.of(view.history, width - left, recent=view.recent)
        last = time_axis.first_step + time_axis.columns * time_axis.bin_width
        curves = [lane.curve(time_axis.first_step, last, 2 * time_axis.columns) for lane in lanes]
        self._axis = axis = _axis(curves, log=view.log)
        raster = Raster(time_axis.columns, rows)
        _draw_target(raster, view, axis)
        for number, curve in enumerate(curves):
            raster.line(_dots(curve, time_axis, axis, rows), lane_mark(number).rgb)
        for number, curve in enumerate(curves):
            _draw_marks(raster, number, len(lanes), curve, time_axis, axis)
        strips = numbered_rows(
            [raster.segments(row) for row in range(rows)], axis.labels(rows, width=left - 1), left, width
        )
        return [*strips, time_row(view, time_axis, left, width)]


def _axis(curves: list[Points], *, log: bool) -> Axis:
    """An axis over all curves, but not far above the start: a lane that diverges would leave no room for the others."""
    starts = [curve[0][1] for curve in curves if curve]
    top = max((start + ABOVE_START * abs(start) for start in starts if start), default=math.inf)
    return axis_over([min(loss, top) for curve in curves for _, loss in curve], log=log)


def _dots(curve: Points, time_axis: TimeAxis, axis: Axis, rows: int) -> Points:
    top = 4 * rows - 1
    return [
        ((step - time_axis.first_step) * 2 / time_axis.bin_width, axis.position(loss) * top)
        for step, loss in curve
        if not math.isnan(axis.position(loss))
    ]


def _draw_target(raster: Raster, view: View, axis: Axis) -> None:
    target = view.history.started.target if view.history.started is not None else None
    if target is not None and axis.contains(target) and not math.isnan(axis.position(target)):
        row = axis.row(target, raster.rows)
        raster.write(0, row, "╌" * raster.columns, colours.FAINT)


def _draw_marks(raster: Raster, number: int, count: int, curve: Points, time_axis: TimeAxis, axis: Axis) -> None:
    """The lane's glyph along its curve, at other columns than those of the other lanes, and at its end."""
    mark, offset = lane_mark(number), number * MARK_EVERY // count
    spots: dict[int, int] = {}  # the row of the curve, by column
    for step, loss in curve:
        column = time_axis.column(int(step))
        if column is not None and not math.isnan(axis.position(loss)):
            spots[column] = axis.row(loss, raster.rows)
    for column, row in spots.items():
        if (column + time_axis.first) % MARK_EVERY == offset or column == max(spots):
            raster.write(column, row, mark.glyph, mark.style)


class RaceTablePanel(Panel):
    """The lanes with their rates, the steps to the target and the newest loss."""

    help_text = (
        "Each lane: its optimizer and learning rate, after how many steps the loss was at or below the target for the "
        "first time, and the newest loss. Then comes its accuracy on held-out data, if there is any."
    )

    def heading(self, view: View) -> tuple[str, str]:
        target = view.history.started.target if view.history.started is not None else None
        return "Race" if target is None else f"Race  [dim]steps to loss {target:.4g}[/dim]", ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        started, lanes = view.history.started, view.history.lanes
        if started is None:
            return []
        cells = [
            (safe(info.optimizer), f"{info.lr:.3g}", _reached(lane), _result(lane))
            for info, lane in zip(started.lanes, lanes, strict=True)
        ]
        names, *widths = (max(map(len, column)) for column in zip(*cells, HEADS, strict=True))
        first = first_to_reach(lanes)
        gap = "  " if 4 + names + sum(widths) + 6 <= width else " "
        heads = "".join(f"{gap}{head:>{w}}" for head, w in zip(HEADS[1:], widths, strict=True))
        rows = [Line().add(f"   {'':{names}}{heads}", colours.DIM).to_strip(width)]
        for number, (name, rate, reached, result) in enumerate(cells):
            mark, lane = lane_mark(number), lanes[number]
            line = Line().add(f" {mark.glyph} ", mark.style).fit(name, names, mark.style)
            line.add(f"{gap}{rate:>{widths[0]}}", colours.TEXT)
            line.add(f"{gap}{reached:>{widths[1]}}", colours.GREEN if number in first else colours.BRIGHT)
            line.add(f"{gap}{result:>{widths[2]}}", colours.ORANGE if _has_failed(lane) else colours.BRIGHT)
            for more, style in _more(lane, is_first=number in first):
                if line.width + 2 + len(more) <= width:
                    line.add(f"  {more}", style)
            rows.append(line.to_strip(width))
        return rows


def _reached(lane: LaneHistory) -> str:
    return "–" if lane.reached is None else with_commas(lane.reached)


def _has_failed(lane: LaneHistory) -> bool:
    return lane.ended is not None and lane.ended.status in ("diverged", "failed")


def _result(lane: LaneHistory) -> str:
    """The newest loss, or how the lane has failed."""
    if lane.ended is not None and _has_failed(lane):
        return lane.ended.status
    return short(lane.loss) if lane.steps else "…"


def _more(lane: LaneHistory, *, is_first: bool) -> list[tuple[str, Style]]:
    """What else is known about a lane, where there is room."""
    found = [("first", colours.GREEN)] if is_first else []
    if lane.ended is not None and _has_failed(lane):
        found.append((f"at step {with_commas(lane.ended.step)}", colours.DIM))
    if lane.ended is not None and lane.ended.accuracy is not None:
        found.append((f"accuracy {lane.ended.accuracy:.3f}", colours.DIM))
    return found
