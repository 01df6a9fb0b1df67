"""Bars on a logarithmic scale, one row a layer, with an aligned number: shared by gradients and updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, empty
from tui_descent.dashboard.text.layer_names import is_norm, labels
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import count, scientific
from tui_descent.dashboard.view import View

_EIGHTHS = " ▏▎▍▌▋▊▉"
NUMBER = 8
# A reading older than both is told with its step.
STALE_STEPS, STALE_S = 10, 2.0


class BarsPanel(Panel):
    """A bar a layer of one metric's newest reading; a panel of this kind says how a bar looks."""

    pace_s = 0.25
    metric: ClassVar[str] = ""

    def cares(self, view: View) -> object:
        """A new reading."""
        return place_of(view), view.selected, view.connected, view.history.state.state

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """As many layers as there are rows."""
        readings = view.history.readings
        if readings is None or not view.layers:
            return empty(view, width, height, "reading")
        values = readings.values.get(self.metric, [])
        values = [*values, *[None] * (len(view.layers) - len(values))]
        self.measure(view, values)
        return [self.bar(view, layer, values[layer], width).strip(width) for layer in rows_of(view, height)]

    def measure(self, view: View, values: list[float | None]) -> None:
        """See all values before the first bar is drawn."""

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        """One layer's row."""
        raise NotImplementedError


def rows_of(view: View, height: int) -> list[int]:
    """The layers to show, output first: all, or those around the selected one, or evenly spread ones, norms last."""
    many = len(view.layers)
    upward = list(range(many - 1, -1, -1))
    if many <= height:
        return upward
    if view.selected is None:
        norms = [n for n in upward if is_norm(view.layers[n])]
        shown = _spread([n for n in upward if not is_norm(view.layers[n])], height)
        return sorted(shown + _spread(norms, height - len(shown)), reverse=True)
    top = min(max(0, many - 1 - view.selected - height // 2), many - height)
    return upward[top : top + height]


def _spread(layers: list[int], room: int) -> list[int]:
    """All of them, or as many as there is room for, from the first to the last."""
    if len(layers) <= room:
        return layers
    return [layers[n * (len(layers) - 1) // max(1, room - 1)] for n in range(room)]


def place_of(view: View) -> object:
    """Which reading is the newest, and how it is told: what bars depend on."""
    readings = view.history.readings
    newest = (readings.segment, readings.step, readings.structure) if readings else None
    return view.history, newest, moment(view)


def moment(view: View) -> str:
    """`now`, or the step of a reading that is no longer of now."""
    readings, history = view.history.readings, view.history
    if readings is None:
        return "now"
    old = history.steps - readings.step > max(STALE_STEPS, STALE_S * history.steps_per_s)
    return f"at step {count(readings.step)}" if old else "now"


def label_width(view: View, width: int) -> int:
    """Cells for names."""
    room = max(4, width // 4)
    return max((len(name) for name in labels(view.layers, room)), default=0)


def bar_line(
    view: View, layer: int, share: float, value: float | None, style: Style, *, width: int, stops: Mapping[int, str]
) -> Line:
    """Name, bar, number. `stops` are characters of the scale, drawn where no bar covers them.

    A layer that learns nothing by design has no number but a word for it.
    """
    names = label_width(view, width)
    chosen = layer == view.selected
    line = Line().put("▸" if chosen else " ", colours.NAME)
    line.fit(labels(view.layers, max(4, width // 4))[layer], names, colours.BRIGHT if chosen else colours.DIM).put(" ")
    room = bar_room(view, width)
    drawn = _bar(share, room)
    for column in range(room):
        # A stop under the bar is seen through it.
        if column in stops and (column >= len(drawn) or drawn[column] == "█"):
            covered = column < len(drawn)
            line.put(stops[column], Style(color=colours.GROUND, bgcolor=style.color) if covered else colours.FAINT)
        else:
            line.put(drawn[column] if column < len(drawn) else " ", style)
    idle = view.idle(layer) if value is None else ""
    return line.put(
        f"{idle or scientific(value):>{NUMBER}}", colours.DIM if idle else colours.BRIGHT if chosen else colours.TEXT
    )


def bar_room(view: View, width: int) -> int:
    """Cells that a full bar takes."""
    return max(1, width - label_width(view, width) - 2 - NUMBER)


def _bar(share: float, room: int) -> str:
    if math.isnan(share):
        return ""
    eighths = round(share * room * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def log_of(value: float | None) -> float:
    """log10, -inf for 0, NaN for nothing; infinite for an infinite one."""
    if value is None or math.isnan(value):
        return math.nan
    return math.log10(value) if value > 0 else -math.inf
