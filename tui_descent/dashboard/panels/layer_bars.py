"""The base class of the gradient and update panels: one bar per layer on a logarithmic scale, with its number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from rich.style import Style
from textual.events import Click, MouseMove
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import SLOW_S, Panel, waiting_notice
from tui_descent.dashboard.text.layer_names import is_norm, layer_labels
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import scientific, with_commas
from tui_descent.dashboard.view import View

_EIGHTHS = " ▏▎▍▌▋▊▉"
NUMBER = 8
# The step of a reading is shown if the reading is older than both limits.
STALE_STEPS, STALE_S = 10, 2.0


class LayerBarsPanel(Panel):
    """One bar per layer: its value of `metric` in the newest reading."""

    min_interval_s = SLOW_S
    metric: ClassVar[str] = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._layers: list[int] = []  # by row

    def depends_on(self, view: View) -> object:
        """The newest reading."""
        return reading_key(view), view.selected, view.connected, view.history.state.state

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """One row per layer, as many as fit."""
        readings = view.history.readings
        if readings is None or not view.layers:
            self._layers = []
            return waiting_notice(view, width, height, "reading")
        values = readings.values.get(self.metric, [])
        values = [*values, *[None] * (len(view.layers) - len(values))]
        self.fit_scale(view, values)
        self._layers = rows_of(view, height)
        return [self.bar(view, layer, values[layer], width).to_strip(width) for layer in self._layers]

    def clickable_at(self, event: Click | MouseMove) -> dict[str, Any]:
        """The layer of a row; in the border, what the words there do."""
        place = event.get_content_offset(self)
        if place is None or place.y >= len(self._layers):
            return super().clickable_at(event)
        return {"layer": self._layers[place.y]}

    def fit_scale(self, view: View, values: list[float | None]) -> None:
        """Adapt the scale to all values. Called before the bars are drawn."""

    def bar(self, view: View, layer: int, value: float | None, width: int) -> Line:
        """One layer's row."""
        raise NotImplementedError


def rows_of(view: View, height: int) -> list[int]:
    """The layers to show, output first.

    If not all fit, these are the layers around the selected one. Without a selection they are spread evenly, and
    normalisation layers are shown only if there is room left.
    """
    count = len(view.layers)
    upward = list(range(count - 1, -1, -1))
    if count <= height:
        return upward
    if view.selected is None:
        norms = [n for n in upward if is_norm(view.layers[n])]
        shown = _spread([n for n in upward if not is_norm(view.layers[n])], height)
        return sorted(shown + _spread(norms, height - len(shown)), reverse=True)
    top = min(max(0, count - 1 - view.selected - height // 2), count - height)
    return upward[top : top + height]


def _spread(layers: list[int], room: int) -> list[int]:
    """All layers, or `room` of them, evenly spread from the first to the last."""
    if len(layers) <= room:
        return layers
    return [layers[n * (len(layers) - 1) // max(1, room - 1)] for n in range(room)]


def reading_key(view: View) -> object:
    """A value that changes when the bars must be redrawn."""
    readings = view.history.readings
    newest = (readings.segment, readings.step, readings.structure) if readings else None
    return view.history, newest, reading_time(view)


def reading_time(view: View) -> str:
    """`now`, or the step of the newest reading if that is old."""
    readings, history = view.history.readings, view.history
    if readings is None:
        return "now"
    old = history.steps - readings.step > max(STALE_STEPS, STALE_S * history.steps_per_s)
    return f"at step {with_commas(readings.step)}" if old else "now"


def label_width(view: View, width: int) -> int:
    """Cells for the layer names."""
    room = max(4, width // 4)
    return max((len(name) for name in layer_labels(view.layers, room)), default=0)


def bar_line(
    view: View, layer: int, share: float, value: float | None, style: Style, *, width: int, ticks: Mapping[int, str]
) -> Line:
    """A layer's name, bar and number. A word such as `frozen` replaces the number of a layer without a gradient.

    `share` is the bar's length, 0 to 1. `ticks` are characters to draw over the bar, by column.
    """
    names = label_width(view, width)
    chosen = layer == view.selected
    line = Line().add("▸" if chosen else " ", colours.NAME)
    click = Style.from_meta({"layer": layer})
    label = layer_labels(view.layers, max(4, width // 4))[layer]
    line.fit(label, names, (colours.BRIGHT if chosen else colours.DIM) + click).add(" ")
    room = bar_room(view, width)
    drawn, at = _bar(share, room).ljust(room), 0
    for column in sorted(ticks):
        if column < room and drawn[column] in "█ ":  # a tick shows through a full block
            covered = drawn[column] == "█"
            line.add(drawn[at:column], style)
            line.add(ticks[column], Style(color=colours.BACKGROUND, bgcolor=style.color) if covered else colours.FAINT)
            at = column + 1
    line.add(drawn[at:], style)
    idle = view.idle(layer) if value is None else ""
    return line.add(
        f"{idle or scientific(value):>{NUMBER}}", colours.DIM if idle else colours.BRIGHT if chosen else colours.TEXT
    )


def bar_room(view: View, width: int) -> int:
    """Cells of a full bar."""
    return max(1, width - label_width(view, width) - 2 - NUMBER)


def _bar(share: float, room: int) -> str:
    if math.isnan(share):
        return ""
    eighths = round(share * room * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def log10(value: float | None) -> float:
    """log10 of a magnitude: -inf for 0, NaN for None, inf for inf."""
    if value is None or math.isnan(value):
        return math.nan
    return math.log10(value) if value > 0 else -math.inf
