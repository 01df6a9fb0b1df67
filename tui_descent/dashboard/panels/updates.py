"""The update panel: each layer's relative update, with the range in which training is healthy."""

from __future__ import annotations

import math

from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import LogScale
from tui_descent.dashboard.panels.layer_bars import LayerBarsPanel, bar_line, bar_room, log10, reading_time
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import power_of_ten
from tui_descent.dashboard.view import View

# Relative updates of weight matrices at usual rates (Karpathy, CS231n: about 1e-3; log10 here).
USUAL_LOW, USUAL_HIGH = -4, -2
# Outside the usual range a net may still be healthy: Adam's first steps, fine-tuning, the end of a schedule. It is
# unhealthy if an update is larger than the weights, or if a layer moves less than 1e-4 times as much as the layer that
# moves most. A layer that moves more than usual does not make the others count as slow.
TOO_LARGE, TOO_SLOW = 0, -4
# The scale is fixed, so the usual range does not move. Values outside the scale have a full or an empty bar.
SCALE = LogScale(-8, 0)


class UpdatesPanel(LayerBarsPanel):
    """The norm of each layer's last update relative to its weights' norm."""

    metric = "update_ratio"
    help_text = (
        "‖ΔW‖ / ‖W‖ of each weight matrix in the newest reading; dimensionless. At usual learning rates it is between "
        "1e-4 and 1e-2 (dotted lines, green bars). Grey bars are outside that range. That alone is not a fault: it "
        "also happens with small weights, in Adam's first steps, in fine-tuning and at the end of a schedule. An "
        "orange bar with ! is a fault: the update is larger than the weights, or less than a ten-thousandth of the "
        "largest one (of 1e-2, if the largest is above that), so this layer hardly learns."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._slow_below = -math.inf

    def heading(self, view: View) -> tuple[str, str]:
        return (
            f"Update  [dim]‖ΔW‖ / ‖W‖ {reading_time(view)}[/dim]",
            f"{power_of_ten(SCALE.low)} … {power_of_ten(SCALE.high)}  usual ┊1e-4 … 1e-2┊",
        )

    def fit_scale(self, view: View, values: list[float | None]) -> None:
        largest = max((log for v in values if math.isfinite(log := log10(v))), default=-math.inf)
        self._slow_below = min(largest, USUAL_HIGH) + TOO_SLOW

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        # Two cells at the end are reserved for the mark of an unhealthy value.
        room = bar_room(view, width - 2)
        ticks = {min(room - 1, int(SCALE.position(edge) * room)): "┊" for edge in (USUAL_LOW, USUAL_HIGH)}
        log = log10(value)
        style, mark = self._style_and_mark(log)
        line = bar_line(view, layer, SCALE.position(log), value, style, width=width - 2, ticks=ticks)
        return line.add(f" {mark}", colours.ORANGE)

    def _style_and_mark(self, log: float) -> tuple[Style, str]:
        if USUAL_LOW <= log <= USUAL_HIGH:
            return colours.GREEN, " "
        return (colours.ORANGE, "!") if log > TOO_LARGE or log < self._slow_below else (colours.DIM, " ")
