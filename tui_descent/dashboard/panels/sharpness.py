"""The sharpness panel: the largest curvature over time, and the stability limit for the learning rate."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS
from tui_descent.dashboard.charts.time_plot import Series, StepLine, scale_words, time_plot
from tui_descent.dashboard.panels.curvature_readings import curvature_readings, nothing_to_show, reading_key
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.clickable import key_word, legend_entry
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import CurvatureTaken

# If the limit is more than this multiple of the curve's maximum, a linear axis does not include it: the curve would
# look flat.
MAX_LIMIT_RATIO = 4.0
SHARPNESS, PLAIN, LIMIT = "sharpness", "plain Hessian", "limit"


class SharpnessPanel(Panel):
    """λmax of the Hessian on the probe batch."""

    min_interval_s = 0.25
    lines = SHARPNESS, PLAIN, LIMIT
    help_text = (
        "λmax, the largest curvature of the loss in any direction, over time; measured on a fixed probe batch while "
        "this view is open. ─ stability limit: above it, steps in that direction grow. It is 2/η for gradient descent "
        "with learning rate η. For Adam and RMSprop the limit applies to the preconditioned Hessian (bright); λmax of "
        "the plain Hessian is dim. Unit: loss per weight²."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._axis: Axis | None = None

    def heading(self, view: View) -> tuple[str, str]:
        span = f"last {RECENT_STEPS}+ steps" if view.recent else "whole run"
        title = f"Sharpness  [dim]λmax[/dim]  {scale_words(view, self._axis)}  {key_word(span, 't')}"
        found = curvature_readings(view)
        newest = found[-1] if found else None
        if newest is None or newest.limit is None:
            return title, "━ λmax"
        limit = legend_entry(view.hidden, LIMIT, "─ ", f"limit {newest.limit.formula}")
        if newest.limit.preconditioned:
            entry = legend_entry(view.hidden, SHARPNESS, "━ ", "preconditioned")
            return title, f"{entry}  {legend_entry(view.hidden, PLAIN, '[dim]━[/] ', '[dim]plain Hessian[/]')}  {limit}"
        return title, f"{legend_entry(view.hidden, SHARPNESS, '━ ', 'λmax')}  {limit}"

    def depends_on(self, view: View) -> object:
        """The newest reading and the time axis."""
        return reading_key(view), view.history.steps, view.hidden

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        found = curvature_readings(view)
        if not found or not view.has_steps:
            return nothing_to_show(view, width, height)
        limits = [(t.step, t.limit.lambda_max) for t in found if t.limit is not None]
        scaled = [(t.step, t.limited) for t in found if t.scaled is not None and t.limited is not None]
        plain = [(t.step, t.sharpness) for t in found]
        every = {PLAIN: Series(plain, colours.BAND, colours.DIM)} if scaled else {}
        every[SHARPNESS] = Series(scaled or plain, colours.CURVE, colours.POINT)
        axis = _axis([v for one in every.values() for _, v in one.points], [v for _, v in limits], log=view.log)
        self._axis = axis
        series = [one for line, one in every.items() if line not in view.hidden]
        step_lines = [StepLine(limits, colours.ORANGE)] if LIMIT not in view.hidden else []
        return time_plot(view, width, height, axis, series=series, step_lines=step_lines)


def _axis(values: list[float], limits: list[float], *, log: bool) -> Axis:
    values = [v for v in values if math.isfinite(v)]
    if log and (found := [*values, *limits]) and min(found) >= 0 < max(found):
        return axis_over(found, log=True)
    highest = max(values, default=1.0)
    near = [v for v in limits if v <= MAX_LIMIT_RATIO * highest]
    return Axis.linear(min(0.0, *values, 0.0), max(highest, *near, 0.0))


def limit_verdict(taken: CurvatureTaken) -> tuple[str, bool]:
    """How λmax compares with its limit, in words, and whether steps are stable."""
    if taken.edge is None:
        return "", True
    if math.isnan(taken.edge):
        return "not a number", False
    ratio = f"{taken.edge:.3g}× the limit"
    if taken.edge > 1.1:
        return f"{ratio}: steps grow", False
    if taken.edge > 0.9:
        return f"{ratio}: at the edge of stability", True
    return f"{ratio}: stable", True
