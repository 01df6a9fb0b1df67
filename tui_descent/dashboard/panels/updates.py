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

HEALTHY_LOW, HEALTHY_HIGH = -4, -2
# The scale is fixed, so that the healthy range does not move. Values outside it have a full or an empty bar.
SCALE = LogScale(-8, 0)


class UpdatesPanel(LayerBarsPanel):
    """The norm of each layer's last update relative to its weights' norm."""

    metric = "update_ratio"
    help_text = (
        "‖ΔW‖ / ‖W‖ of the update in the newest reading; dimensionless. Values between 1e-4 and 1e-2 (dotted lines) "
        "are healthy and green. Below that range the layer hardly learns; above it, its updates are too large. Bars "
        "outside the range are orange, with a ! at the end."
    )

    def heading(self, view: View) -> tuple[str, str]:
        return (
            f"Update  [dim]‖ΔW‖ / ‖W‖ {reading_time(view)}[/dim]",
            f"{power_of_ten(SCALE.low)} … {power_of_ten(SCALE.high)}  healthy ┊1e-4 … 1e-2┊",
        )

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        # Two cells at the end are reserved for the mark of an unhealthy value.
        room = bar_room(view, width - 2)
        ticks = {min(room - 1, int(SCALE.position(edge) * room)): "┊" for edge in (HEALTHY_LOW, HEALTHY_HIGH)}
        log = log10(value)
        style, mark = _style_and_mark(log)
        line = bar_line(view, layer, SCALE.position(log), value, style, width=width - 2, ticks=ticks)
        return line.add(f" {mark}", colours.ORANGE)


def _style_and_mark(log: float) -> tuple[Style, str]:
    if math.isnan(log):
        return colours.DIM, " "
    return (colours.GREEN, " ") if HEALTHY_LOW <= log <= HEALTHY_HIGH else (colours.ORANGE, "!")
