"""Gradient norm of every layer now: bars on a scale of decades, colour by magnitude."""

from __future__ import annotations

import math

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import Scale
from tui_descent.dashboard.panels.layer_bars import BarsPanel, bar_line, log_of, moment
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import decade
from tui_descent.dashboard.view import View
from tui_descent.telemetry.layers import LOG_FLOOR


class GradientsPanel(BarsPanel):
    """L2 norm of the loss' gradient with respect to each layer's weights, at the newest reading."""

    metric = "grad_norm"
    about = (
        "‖∂L/∂W‖, the L2 norm of the gradient of each layer's weights at the newest reading, on a scale of decades "
        "that only an undo or a redo narrows. Bars of one length: every layer learns. Shrinking: it vanishes. "
        "Where not all fit, norms are left out first; arrows go to every layer. "
        "All as the optimizer receives them; while clip is on, ‖g‖ tells the whole net's norm before → after it."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scale = Scale(-6, 1)

    def heading(self, view: View) -> tuple[str, str]:
        """The quantity above, its scale below."""
        return (
            f"Gradient  [dim]‖∂L/∂W‖ {moment(view)}[/dim]{clipped(view)}",
            f"{decade(self._scale.low)} … {decade(self._scale.high)}  [bold $primary]enter[/] one layer",
        )

    def measure(self, view: View, values: list[float | None]) -> None:
        """The scale widens to hold them."""
        self._scale.follow(view.history)
        self._scale.cover((log_of(v) for v in values), LOG_FLOOR)

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        """As long and as bright as the norm is large."""
        log = log_of(value)
        level = colours.level_of(log, self._scale.low, self._scale.high) if not math.isnan(log) else 0
        return bar_line(
            view, layer, self._scale.place(log), value, colours.level_style(level or 0), width=width, stops={}
        )


def clipped(view: View) -> str:
    """The whole net's norm before and after our clip, while that is on."""
    readings = view.history.readings
    if readings is None or readings.grad_norm_preclip is None:
        return ""
    return f"  ‖g‖ {readings.grad_norm_preclip:.2g} → {readings.global_grad_norm:.2g}"
