"""The gradient panel: each layer's gradient norm as a bar, coloured by magnitude."""

from __future__ import annotations

import math

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import LogScale
from tui_descent.dashboard.panels.layer_bars import LayerBarsPanel, bar_line, log10, reading_time
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import power_of_ten
from tui_descent.dashboard.view import View
from tui_descent.telemetry.gradient_history import LOG_FLOOR

ONE_LAYER = "[@click=app.press('enter')][bold $primary]enter[/] one layer[/]"


class GradientsPanel(LayerBarsPanel):
    """The L2 norm of each layer's weight gradient in the newest reading."""

    metric = "grad_norm"
    help_text = (
        "‖∂L/∂W‖, the L2 norm of each layer's weight gradient in the newest reading, on a logarithmic scale. The scale "
        "widens as needed and shrinks only after an undo or redo. Bars of similar length are healthy. If they shrink "
        "towards the input by several powers of ten, the gradient vanishes. If not all layers fit, normalisation "
        "layers are hidden first; the arrow keys reach every layer. Gradients are shown as the optimizer receives "
        "them. While clipping is on, ‖g‖ is the gradient norm of the whole net, before → after clipping."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scale = LogScale(-6, 1)

    def heading(self, view: View) -> tuple[str, str]:
        title, clipping = f"‖∂L/∂W‖ {reading_time(view)}", _clipping(view)
        if len(f" Gradient  {title}{clipping} ") > self.content_size.width - 2:
            clipping = ""  # the border would cut its numbers
        return (
            f"Gradient  [dim]{title}[/dim]{clipping}",
            f"{power_of_ten(self._scale.low)} … {power_of_ten(self._scale.high)}  {ONE_LAYER}",
        )

    def fit_scale(self, view: View, values: list[float | None]) -> None:
        self._scale.reset_for(view.history)
        self._scale.widen((log10(v) for v in values), LOG_FLOOR)

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        log = log10(value)
        level = colours.level_of(log, self._scale.low, self._scale.high) if not math.isnan(log) else 0
        return bar_line(
            view, layer, self._scale.position(log), value, colours.level_style(level or 0), width=width, ticks={}
        )


def _clipping(view: View) -> str:
    """The whole net's gradient norm before and after clipping, if clipping is on."""
    readings = view.history.readings
    if readings is None or readings.grad_norm_preclip is None:
        return ""
    return f"  ‖g‖ {readings.grad_norm_preclip:.2g} → {readings.global_grad_norm:.2g}"
