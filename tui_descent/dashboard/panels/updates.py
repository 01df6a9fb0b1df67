"""Relative update of every layer now, against the band in which training is healthy."""

from __future__ import annotations

from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import Scale
from tui_descent.dashboard.panels.layer_bars import BarsPanel, bar_line, bar_room, log_of, moment
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import decade
from tui_descent.dashboard.view import View

HEALTHY_LOW, HEALTHY_HIGH = -4, -2
# Fixed, so that the band stands still; what lies outside is a full or an empty bar, and its number.
SCALE = Scale(-8, 0)


class UpdatesPanel(BarsPanel):
    """How far each layer's weights moved in one update, relative to their own size."""

    metric = "update_ratio"
    about = (
        "‖ΔW‖ / ‖W‖ of the newest reading's update, without unit. Between 1e-4 and 1e-2 (dotted lines) is healthy and "
        "green; below, the layer hardly learns; above, it is thrown about: orange, with a ! behind the number."
    )

    def heading(self, view: View) -> tuple[str, str]:
        """The quantity above, scale and band below."""
        return (
            f"Update  [dim]‖ΔW‖ / ‖W‖ {moment(view)}[/dim]",
            f"{decade(SCALE.low)} … {decade(SCALE.high)}  healthy ┊1e-4 … 1e-2┊",
        )

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        """Between the band's edges, or marked."""
        # One cell at the end is kept for the mark of what is off.
        room = bar_room(view, width - 2)
        stops = {min(room - 1, int(SCALE.place(edge) * room)): "┊" for edge in (HEALTHY_LOW, HEALTHY_HIGH)}
        log = log_of(value)
        style, sign = _judged(log)
        line = bar_line(view, layer, SCALE.place(log), value, style, width=width - 2, stops=stops)
        return line.put(f" {sign}", colours.ORANGE)


def _judged(log: float) -> tuple[Style, str]:
    if log != log:
        return colours.DIM, " "
    return (colours.GREEN, " ") if HEALTHY_LOW <= log <= HEALTHY_HIGH else (colours.ORANGE, "!")
