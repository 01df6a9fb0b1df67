"""The smallest-curvature panel: λmin over time. If λmin is negative, its eigenvector is a saddle direction."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_plot import Series, StepLine, time_plot
from tui_descent.dashboard.panels.curvature_readings import curvature_readings, reading_key
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.view import View


class SmallestCurvaturePanel(Panel):
    """λmin of the Hessian on the probe batch."""

    min_interval_s = 0.25
    help_text = (
        "λmin, the smallest curvature of the loss, on a linear axis with a line at zero. If it is clearly negative "
        "while the gradient is small, the run is at a saddle. At a minimum it is not negative, apart from its "
        "measurement error."
    )

    def heading(self, view: View) -> tuple[str, str]:
        return "Smallest curvature  [dim]λmin  linear[/dim]", "below the line at 0: a saddle direction"

    def depends_on(self, view: View) -> object:
        """The newest reading and the time axis."""
        return reading_key(view), view.history.steps

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        found = curvature_readings(view)
        if not found or not view.has_steps:
            return []
        points = [(t.step, t.hessian.lambda_min) for t in found]
        values = [v for _, v in points if math.isfinite(v)]
        axis = Axis.linear(min(0.0, *values, 0.0), max(0.0, *values, 0.0))
        series = [Series(points, colours.CURVE, colours.POINT)]
        return time_plot(view, width, height, axis, series=series, step_lines=[StepLine([(0, 0.0)], colours.DIM)])
