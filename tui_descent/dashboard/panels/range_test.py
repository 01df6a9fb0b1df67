"""The range-test panel: the loss against the learning rate."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.xy_plot import Marker, Polyline, height_axis, xy_plot
from tui_descent.dashboard.panels.panel import notice
from tui_descent.dashboard.panels.range_test_result import RangeTestResultPanel
from tui_descent.dashboard.text.numbers import axis_number
from tui_descent.dashboard.view import View
from tui_descent.protocol.range_test import RangeTestCompleted

# The y axis ends above the current loss by GAINS times the largest decrease found, or by HALF of the loss if that is
# more.
GAINS, HALF = 3.0, 0.5
# From this width on, the longer heading fits.
WIDE = 50


class RangeTestPanel(RangeTestResultPanel):
    """The loss after one update at each of a hundred learning rates, on a logarithmic axis of learning rates."""

    help_text = (
        "A hundred updates, each with a larger learning rate than the one before. Drawn after each update: the loss of "
        "the next batch, minus the loss of the same batch at the weights before the test. The subtraction removes the "
        "differences between hard and easy batches. The run is restored afterwards. Dim: each batch. Bright: "
        "exponential moving average, factor 0.9. ▲ lowest: the rate with the lowest loss. ▲ try: the suggested rate, a "
        "tenth of that."
    )

    def heading(self, view: View) -> tuple[str, str]:
        axes = "loss against learning rate (log)" if self.content_size.width >= WIDE else "loss by learning rate"
        return f"Range test  [dim]{axes}[/dim]", "⣿ each batch  ━ smooth"

    def plot(self, result: RangeTestCompleted, width: int, height: int) -> list[Strip]:
        if not result.rates:
            return notice([("the first update gave a NaN", colours.ORANGE)], width, height)
        low, high = math.log10(result.rates[0]), math.log10(max(result.rates[-1], result.ended_at or 0.0, result.rate))

        def place(rate: float) -> float:
            return (math.log10(rate) - low) / ((high - low) or 1.0)

        # The first markers take precedence where their names collide.
        named_rates = [
            (result.suggestion, "try", colours.GREEN),
            (result.rate, "now", colours.BRIGHT),
            (result.lowest, "lowest", colours.DIM),
        ]
        gain = result.level - min(result.smooth)
        axis = height_axis([result.level, *result.smooth], result.level + max(GAINS * gain, HALF * abs(result.level)))
        xs = [place(rate) for rate in result.rates]
        paths = [
            Polyline(list(zip(xs, result.against, strict=True)), colours.BAND),
            Polyline(list(zip(xs, result.smooth, strict=True)), colours.CURVE),
        ]
        markers = [Marker(place(rate), name, style) for rate, name, style in named_rates if rate]
        decades = range(math.ceil(low), math.floor(high) + 1)
        return xy_plot(
            width,
            height,
            axis,
            paths=paths,
            markers=markers,
            ticks={place(10.0**e): axis_number(10.0**e) for e in decades},
        )
