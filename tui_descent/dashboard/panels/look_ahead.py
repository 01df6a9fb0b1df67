"""The look-ahead panel: the loss along the direction of the next update."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.xy_plot import Marker, Polyline, height_axis, xy_plot
from tui_descent.dashboard.panels.panel import notice
from tui_descent.dashboard.panels.range_test_result import RangeTestResultPanel
from tui_descent.dashboard.view import View
from tui_descent.protocol.range_test import RangeTestCompleted

# The y axis ends this multiple of their magnitude above the losses of the smallest steps.
HEADROOM = 3.0
FRACTIONS = {0.0: "0", 0.125: "⅛", 0.25: "¼", 0.5: "½"}


class LookAheadPanel(RangeTestResultPanel):
    """The loss at multiples of the next update."""

    help_text = (
        "Loss of the next batch at θ + s·d, where θ are the current weights and d is the optimizer's next update, with "
        "momentum, preconditioning, weight decay and clipping. The mark '▲ next' is at s = 1. If the loss still falls "
        "beyond s = 1, a longer step would be better for this batch. If the loss at s = 1 is higher than at s = 0, the "
        "step is too long for this batch."
    )

    def heading(self, view: View) -> tuple[str, str]:
        return "Look ahead  [dim]loss at s[/dim]", "s × the next update"

    def plot(self, result: RangeTestCompleted, width: int, height: int) -> list[Strip]:
        if not result.ahead:
            return notice([("the next update changes nothing", colours.DIM)], width, height)
        last = len(result.scales) - 1
        finite = [v for v in result.ahead if math.isfinite(v)]
        near = finite[:5]
        size = max(map(abs, near), default=0.0)
        axis = height_axis(finite, max(near) + HEADROOM * size if size else math.inf)
        path = Polyline([(n / last, loss) for n, loss in enumerate(result.ahead)], colours.BAND, colours.POINT)
        markers = [Marker(n / last, "next", colours.BRIGHT) for n, scale in enumerate(result.scales) if scale == 1]
        ticks = {n / last: FRACTIONS.get(scale, f"{scale:g}") for n, scale in enumerate(result.scales)}
        return xy_plot(width, height, axis, paths=[path], markers=markers, ticks=ticks)
