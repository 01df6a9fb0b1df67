"""The smallest curvature over time: under zero there is a way down on both sides."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_plot import Level, Series, place_of, plotted, readings
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.view import View


class LowestPanel(Panel):
    """λmin of the Hessian on the probe batch."""

    pace_s = 0.25
    about = (
        "λmin, the loss' smallest curvature, linear, with zero as a line. Well under zero while the gradient is small: "
        "a saddle, not a minimum. Near a minimum it is 0 as far as it can be told."
    )

    def heading(self, view: View) -> tuple[str, str]:
        """What it is above, how to read it below."""
        return "Smallest curvature  [dim]λmin  linear[/dim]", "under ─ 0: a way down on both sides"

    def cares(self, view: View) -> object:
        """A new reading, or another step on the axis."""
        return place_of(view), view.history.steps

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The curve and zero."""
        found = readings(view)
        if not found or not view.steps_known:
            return []
        points = [(t.step, t.hessian.lambda_min) for t in found]
        values = [v for _, v in points if math.isfinite(v)]
        axis = Axis.linear(min(0.0, *values, 0.0), max(0.0, *values, 0.0))
        series = [Series(points, colours.CURVE, colours.POINT)]
        return plotted(view, width, height, axis, series=series, levels=[Level([(0, 0.0)], colours.DIM)])
