"""The largest curvature over time, and the limit that the step size sets it."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS
from tui_descent.dashboard.charts.time_plot import Level, Series, nothing_yet, place_of, plotted, readings, scale_words
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import CurvatureTaken

# On a linear axis a limit farther away than this would leave nothing of the curve.
NEAR = 4.0


class SharpnessPanel(Panel):
    """λmax of the Hessian on the probe batch."""

    pace_s = 0.25
    about = (
        "λmax, the loss' largest curvature along any direction of the weights, on the loss' time axis; read on a fixed "
        "probe batch while this view is open. ─ the limit above which steps along that direction grow: 2/η for "
        "gradient descent at rate η. For Adam and RMSprop the limit is about the Hessian as they scale it: bright, the "
        "plain one dim. Unit: loss per weight²."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._axis: Axis | None = None

    def heading(self, view: View) -> tuple[str, str]:
        """Scale and span above, the legend below."""
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        title = f"Sharpness  [dim]λmax[/dim]  {scale_words(view, self._axis)}  [dim]{span}[/dim] [bold $primary]t[/]"
        found = readings(view)
        newest = found[-1] if found else None
        if newest is None or newest.limit is None:
            return title, "━ λmax"
        limit = f"─ limit {newest.limit.formula}"
        if newest.limit.preconditioned:
            return title, f"━ scaled by the optimizer  [dim]━ plain[/dim]  {limit}"
        return title, f"━ λmax  {limit}"

    def cares(self, view: View) -> object:
        """A new reading, or another step on the axis."""
        return place_of(view), view.history.steps

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Curve and limit."""
        found = readings(view)
        if not found or not view.steps_known:
            return nothing_yet(view, width, height)
        limits = [(t.step, t.limit.lambda_max) for t in found if t.limit is not None]
        scaled = [(t.step, t.limited) for t in found if t.scaled is not None and t.limited is not None]
        plain = [(t.step, t.sharpness) for t in found]
        series = [Series(plain, colours.BAND, colours.DIM)] if scaled else []
        series.append(Series(scaled or plain, colours.CURVE, colours.POINT))
        axis = self._axis = _axis([v for one in series for _, v in one.points], [v for _, v in limits], log=view.log)
        return plotted(view, width, height, axis, series=series, levels=[Level(limits, colours.ORANGE)])


def _axis(values: list[float], limits: list[float], *, log: bool) -> Axis:
    values = [v for v in values if math.isfinite(v)]
    if log and (found := [*values, *limits]) and min(found) >= 0 < max(found):
        return axis_over(found, log=True)
    highest = max(values, default=1.0)
    near = [v for v in limits if v <= NEAR * highest]
    return Axis.linear(min(0.0, *values, 0.0), max(highest, *near, 0.0))


def verdict(taken: CurvatureTaken) -> tuple[str, bool]:
    """Where λmax stands to its limit, in words, and whether that is well."""
    if taken.edge is None:
        return "", True
    share = f"{taken.edge:.3g} of it"
    if taken.edge > 1.1:
        return f"{share}: steps grow", False
    if taken.edge > 0.9:
        return f"{share}: at the edge of stability", True
    return f"{share}: steps settle", True
