"""Gradient norm of every layer now: bars on a scale of decades, colour by magnitude."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import ink
from tui_descent.dashboard.figures import decade
from tui_descent.dashboard.panels.bars import bar_line, log_of, moment, place_of, rows_of
from tui_descent.dashboard.panels.scale import Scale
from tui_descent.dashboard.panels.strips import Panel, empty
from tui_descent.dashboard.panels.view import View
from tui_descent.telemetry.history import LOG_FLOOR


class GradientsPanel(Panel):
    """L2 norm of the loss' gradient with respect to each layer's weights, at the newest reading."""

    pace_s = 0.25
    about = (
        "‖∂L/∂W‖, the L2 norm of the gradient of each layer's weights at the newest reading, on a scale of decades "
        "that only ever widens. Bars of one length: every layer learns. Bars shrinking downwards: it vanishes."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scale = Scale(-6, 1)

    def heading(self, view: View) -> tuple[str, str]:
        """The quantity above, its scale below."""
        return (
            f"Gradient  [dim]‖∂L/∂W‖ {moment(view)}[/dim]",
            f"{decade(self._scale.low)} … {decade(self._scale.high)}  [bold $primary]enter[/] one layer",
        )

    def cares(self, view: View) -> object:
        """A new reading."""
        return place_of(view), view.selected, view.connected, view.history.state.state

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """A bar a layer."""
        readings = view.history.readings
        if readings is None or not view.layers:
            return empty(view, width, height, "reading")
        norms = readings.values.get("grad_norm", [])
        norms = [*norms, *[None] * (len(view.layers) - len(norms))]
        self._scale.follow(view.history)
        self._scale.cover((log_of(v) for v in norms), LOG_FLOOR)
        lines = []
        for layer in rows_of(view, height):
            log = log_of(norms[layer])
            level = ink.level_of(log, self._scale.low, self._scale.high) if not math.isnan(log) else 0
            style = ink.level_style(level or 0)
            lines.append(bar_line(view, layer, self._scale.place(log), norms[layer], style, width=width, stops={}))
        return [line.strip(width) for line in lines]
