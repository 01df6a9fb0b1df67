"""The metrics panel: what the user's loop logs with `run.log`, one small chart per name."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS, TimeAxis, gutter
from tui_descent.dashboard.charts.time_plot import Points, Series, time_plot
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.clickable import key_word
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.telemetry.metric_history import MAX_COUNTED, Metric, MetricHistory

# Rows of one metric: its name and value, then its chart.
FEWEST_ROWS = 4
TWO_COLUMNS_FROM = 100  # cells
COLUMN_GAP = 2
# Above this ratio of largest to smallest value the axis is logarithmic, if the loss axis is.
LOG_FROM_RATIO = 1000.0


class MetricsPanel(Panel):
    """The newest value and the curve of each metric."""

    min_interval_s = 0.5
    help_text = (
        'What your own loop logs with run.log("accuracy", value): the newest value of each name with its step, and its '
        "curve over the same time axis as the loss. ↑ ↓ scroll. val_loss is also drawn as ○ in the loss chart."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._top = 0  # the first row of charts that is shown
        self._hidden = ""  # text for the border: which metrics are shown, if not all

    def scroll_by(self, rows: int) -> None:
        """Scroll towards the first metrics (positive) or the last ones."""
        self._top = max(0, self._top - rows)
        self.invalidate()

    def heading(self, view: View) -> tuple[str, str]:
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        return f"Metrics  {key_word(span, 't')}", self._hidden

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        history = view.history.metrics.get(view.history.segment)
        if history is None or not history.metrics:
            self._hidden = ""
            return _how_to_log(view, width, height)
        names = list(history.metrics)
        columns = 2 if width >= TWO_COLUMNS_FROM and len(names) > 1 else 1
        lines = -(-len(names) // columns)
        room = height - 1  # the time axis is below the last charts
        each = min(max(room // lines, FEWEST_ROWS), max(1, room))
        shown = min(max(1, room // each), lines)
        self._top = min(self._top, lines - shown)
        first, end = self._top * columns, min((self._top + shown) * columns, len(names))
        self._hidden = _hidden(history, first, end)
        wide = (width - COLUMN_GAP * (columns - 1)) // columns
        blocks = [_block(view, name, history.metrics[name], wide, each + 1) for name in names[first:end]]
        rows: list[Strip] = []
        for at in range(0, len(blocks), columns):
            last = at + columns >= len(blocks)
            beside = blocks[at : at + columns]
            rows += [_join(parts, wide, width) for parts in zip(*beside, strict=True)][: each + last]
        return rows


def _block(view: View, name: str, metric: Metric, width: int, height: int) -> list[Strip]:
    """Name and newest value, the chart, and the time axis."""
    title = Line().add(f" {safe(name, max(10, width - 30))}  ", colours.TEXT)
    title.add(short(metric.value), colours.BRIGHT if math.isfinite(metric.value) else colours.RED)
    title.add(f"  step {with_commas(metric.step)}", colours.DIM)
    time_axis = TimeAxis.of(view.history, width - gutter(view, width), recent=view.recent)
    points = metric.points(time_axis.steps_per_dot, time_axis.first_step, max(view.history.steps, metric.step))
    series = [Series(points, colours.CURVE, colours.BRIGHT)]
    return [
        title.to_strip(width),
        *time_plot(view, width, height - 1, _axis(points, log=view.log), series=series, step_lines=()),
    ]


def _axis(points: Points, *, log: bool) -> Axis:
    values = [value for _, value in points]
    positive = bool(values) and min(values) > 0 and max(values) / min(values) > LOG_FROM_RATIO
    return axis_over(values, log=log and positive)


def _join(parts: tuple[Strip, ...], wide: int, width: int) -> Strip:
    line = Line()
    for n, part in enumerate(parts):
        line.pad_to(n * (wide + COLUMN_GAP)).extend(part)
    return line.to_strip(width)


def _hidden(history: MetricHistory, first: int, end: int) -> str:
    """Text for the border: which metrics are shown, if not all."""
    count, more = len(history.metrics), len(history.left_out)
    texts = [f"{first + 1}-{end} of {count} ↑ ↓"] if end - first < count else []
    if more:
        texts.append(f"{more}{'+' * (more >= MAX_COUNTED)} more names are not kept")
    return " · ".join(texts)


def _how_to_log(view: View, width: int, height: int) -> list[Strip]:
    started = view.history.started
    if started is not None and started.scenario is not None:
        lines = [("no metrics: they are logged by your own loop, with run.log(name, value)", colours.DIM)]
    elif not view.history.live:
        lines = [("no metrics were logged in this run", colours.DIM)]
    elif view.replay:
        lines = [("no metrics so far", colours.DIM)]
    else:
        lines = [
            ("no metrics yet", colours.TEXT),
            ("", colours.DIM),
            ('run.log("accuracy", value) draws a curve here', colours.DIM),
            ('run.log("val_loss", value) also draws ○ in the loss chart', colours.DIM),
        ]
    return notice(lines, width, height)
