"""Relative update of every layer now, against the band in which training is healthy."""

from __future__ import annotations

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import ink
from tui_descent.dashboard.figures import decade
from tui_descent.dashboard.panels.bars import bar_line, bar_room, log_of, moment, place_of, rows_of
from tui_descent.dashboard.panels.scale import Scale
from tui_descent.dashboard.panels.strips import Panel, empty
from tui_descent.dashboard.panels.view import View

HEALTHY_LOW, HEALTHY_HIGH = -4, -2
# Fixed, so that the band stands still; what lies outside is a full or an empty bar, and its number.
SCALE = Scale(-8, 0)


class UpdatesPanel(Panel):
    """How far each layer's weights moved in one update, relative to their own size."""

    pace_s = 0.25
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

    def cares(self, view: View) -> object:
        """A new reading."""
        return place_of(view), view.selected, view.connected, view.history.state.state

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """A bar a layer."""
        readings = view.history.readings
        if readings is None or not view.layers:
            return empty(view, width, height, "reading")
        ratios = readings.values.get("update_ratio", [])
        ratios = [*ratios, *[None] * (len(view.layers) - len(ratios))]
        # One cell at the end is kept for the mark of what is off.
        room = bar_room(view, width - 2)
        stops = {min(room - 1, int(SCALE.place(edge) * room)): "┊" for edge in (HEALTHY_LOW, HEALTHY_HIGH)}
        lines = []
        for layer in rows_of(view, height):
            log = log_of(ratios[layer])
            style, sign = _judged(log)
            share = SCALE.place(log)
            line = bar_line(view, layer, share, ratios[layer], style, width=width - 2, stops=stops)
            lines.append(line.put(f" {sign}", ink.ORANGE))
        return [line.strip(width) for line in lines]


def _judged(log: float) -> tuple[Style, str]:
    if log != log:
        return ink.DIM, " "
    return (ink.GREEN, " ") if HEALTHY_LOW <= log <= HEALTHY_HIGH else (ink.ORANGE, "!")
