"""The gradient-flow heat-map: log10 grad_rms by layer and time. The output is at the top; a text row has two halves."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from rich.segment import Segment
from rich.style import Style
from textual.events import Click, MouseMove
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import LogScale
from tui_descent.dashboard.charts.time_axis import BinCache, TimeAxis, gutter, marks
from tui_descent.dashboard.panels.panel import SLOW_S, Panel, waiting_notice
from tui_descent.dashboard.text.layer_names import is_norm, layer_labels
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import power_of_ten
from tui_descent.dashboard.view import View
from tui_descent.telemetry.gradient_history import LOG_FLOOR

Bins = list[tuple[int, list[float]]]
Levels = tuple[int | None, ...]


class HeatmapPanel(Panel):
    """The root-mean-square gradient of each layer's weights over time."""

    min_interval_s = SLOW_S
    help_text = (
        "Root-mean-square gradient of each layer's weights over time, with the output at the top and the input at the "
        "bottom. The time axis is that of the loss chart. Dark is small, bright is large; the border shows the scale. "
        "The scale widens as needed and shrinks only after an undo or redo. At full speed a column may have no "
        "reading; then it repeats the last one, dimmed in a long gap. Unit: loss per unit of weight."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = BinCache()
        self._scale = LogScale(-6, 0)
        self._levels: dict[tuple[object, ...], Levels] = {}
        self._has_dimmed = False
        self._layers: list[int] = []  # by row: the layer that a click selects

    def depends_on(self, view: View) -> object:
        """The newest reading, the layers and the time axis; not every step."""
        readings = view.history.readings
        statuses = tuple(readings.statuses) if readings else ()
        width = self.content_size.width
        time_axis = TimeAxis.of(view.history, width - gutter(view, width), recent=view.recent)
        # Within a column a new reading changes little: four redraws per column are enough.
        newest = (readings.segment, readings.step // max(1, time_axis.bin_width // 4)) if readings else None
        interventions = (len(view.history.interventions), len(view.history.marks), view.history.state.state)
        column = (time_axis.bin_width, time_axis.first, time_axis.last_step // time_axis.bin_width)
        layers = view.history.structure
        return view.history, layers, newest, statuses, column, view.selected, view.recent, interventions, view.connected

    def heading(self, view: View) -> tuple[str, str]:
        legend = f"{power_of_ten(self._scale.low)} {colours.legend(12)} {power_of_ten(self._scale.high)}"
        dimmed = ("dimmed: no reading  " if colours.palette().can_dim else "░ no reading  ") * self._has_dimmed
        return "Gradient flow  [dim]layer × time, output at the top[/dim]", f"{dimmed}{legend}  ∂L/∂W rms"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        self._scale.reset_for(view.history)
        grads = view.history.grads.get(view.history.segment)
        readings = view.history.readings
        idle = readings is not None and readings.segment == view.history.segment  # read, but no layer has a gradient
        if not view.layers or not (grads or idle):
            self._layers = []
            return waiting_notice(view, width, height, "reading")
        left = gutter(view, width)
        time_axis = TimeAxis.of(view.history, width - left, recent=view.recent)
        first, last = time_axis.first_step, time_axis.last_step
        bins = self._columns.read(grads, time_axis.bin_width, first, last) if grads else []
        for _, values in bins:
            self._scale.widen(values, LOG_FLOOR)
        picture, dimmed = self._picture(bins, time_axis, 2 * height)
        self._has_dimmed = bool(dimmed)
        marked = {mark.column for mark in marks(view, time_axis)}
        names = row_names(view, height, left - 2)
        labels = layer_labels(view.layers, left - 2)
        self._layers = [
            labels.index(name) if name else _middle_layer(view, y, height) for y, (name, _) in enumerate(names)
        ]
        rows = []
        for y in range(height):
            name, chosen = names[y]
            line = Line().add("▸" if chosen else " ", colours.NAME)
            click = Style.from_meta({"layer": self._layers[y]})
            line.fit(f"{name:>{left - 2}} ", left - 1, (colours.BRIGHT if chosen else colours.DIM) + click)
            word = _word_cells(idle_word(view, layers_of_row(y, height, len(view.layers))), picture, y)
            rows.append(line.extend(_row(picture, y, marked, dimmed, word)).to_strip(width))
        return rows

    def clickable_at(self, event: Click | MouseMove) -> dict[str, Any]:
        """The layer of a row; in the border, what the words there do."""
        place = event.get_content_offset(self)
        if place is None or place.y >= len(self._layers):
            return super().clickable_at(event)
        return {"layer": self._layers[place.y]}

    def _picture(self, bins: Bins, time_axis: TimeAxis, half_rows: int) -> tuple[list[Levels], set[int]]:
        """Palette levels by column, and the columns to dim.

        A column without a reading repeats the column before it. It is dimmed if the gap is more than twice the usual
        one.
        """
        shape = (half_rows, self._scale.low, self._scale.high)
        by_column = {bin_ - time_axis.first: values for bin_, values in bins}
        newest = time_axis.last_step // time_axis.bin_width - time_axis.first
        nothing: Levels = (None,) * half_rows
        max_gap, gap = _usual_gap(bins) * 2, 0
        columns: list[Levels] = []
        dimmed: set[int] = set()
        kept: dict[tuple[object, ...], Levels] = {}
        for column in range(time_axis.columns):
            values = by_column.get(column)
            if values is None:
                gap += 1
                columns.append(columns[-1] if columns and column <= newest else nothing)
                if gap > max_gap and columns[-1] is not nothing:
                    dimmed.add(column)
                continue
            gap = 0
            # The newest column's values still change, so they are part of the key.
            key = (column + time_axis.first, time_axis.bin_width, shape, tuple(values))
            kept[key] = self._levels.get(key) or column_levels(values, self._scale, half_rows)
            columns.append(kept[key])
        self._levels = kept
        return columns, dimmed


def _usual_gap(bins: Bins) -> int:
    """The median number of columns from one reading to the next."""
    gaps = sorted(b[0] - a[0] for a, b in pairwise(bins))
    return gaps[len(gaps) // 2] if gaps else 1


def column_levels(values: list[float], scale: LogScale, half_rows: int) -> Levels:
    """Palette levels of one column by half row, output first. Layers that share a half row are averaged."""
    upward, count = values[::-1], len(values)
    levels: list[int | None] = []
    for half in range(half_rows):
        first = half * count // half_rows
        last = max(first + 1, (half + 1) * count // half_rows)
        known = [v for v in upward[first:last] if not math.isnan(v)]
        levels.append(colours.level_of(sum(known) / len(known), scale.low, scale.high) if known else None)
    return tuple(levels)


def layers_of_row(y: int, height: int, count: int) -> range:
    """The layers that text row `y` shows, in forward order."""
    first = 2 * y * count // (2 * height)
    last = max(first + 1, -(-(2 * y + 2) * count // (2 * height)))
    return range(max(0, count - last), count - first)


def _middle_layer(view: View, y: int, height: int) -> int:
    """The layer in the middle of a row."""
    count = len(view.layers)
    return count - 1 - min((2 * y + 1) * count // (2 * height), count - 1)


def row_names(view: View, height: int, width: int) -> list[tuple[str, bool]]:
    """For each text row: the layer name beside it, if there is room, and whether the row shows the selected layer."""
    names = layer_labels(view.layers, width)
    count = len(names)
    rows = [("", view.selected in layers_of_row(y, height, count)) for y in range(height)]
    # First the selected layer and both ends, then others where there is room, normalisation layers last.
    ends = [n for n in (view.selected, count - 1, 0) if n is not None and n < count]
    others = sorted(range(count - 2, 0, -1), key=lambda n: is_norm(view.layers[n]))
    gap = 1 if count >= height else 0
    taken: set[int] = set()
    for layer in dict.fromkeys([*ends, *others]):
        y = (2 * (count - 1 - layer) + 1) * height // (2 * count)
        if not taken.intersection(range(y - gap, y + gap + 1)):
            taken.add(y)
            rows[y] = (names[layer], rows[y][1])
    return rows


def idle_word(view: View, layers: range) -> str:
    """The word for a layer without a gradient, if it is the same for all of a row's layers."""
    words = {view.idle(layer) for layer in layers}
    return words.pop() if len(words) == 1 else ""


def _word_cells(word: str, picture: list[Levels], y: int) -> dict[int, str]:
    """A word's letters by column, written after the row's last measured column."""
    if not word:
        return {}
    lit = [n for n, levels in enumerate(picture) if levels[2 * y] is not None or levels[2 * y + 1] is not None]
    start = lit[-1] + 2 if lit else 1
    return dict(enumerate(word, start)) if start + len(word) <= len(picture) else {}


def _row(picture: list[Levels], y: int, marked: set[int], dimmed: set[int], word: dict[int, str]) -> list[Segment]:
    segments: list[Segment] = []
    text, style = "", Style()
    for column, levels in enumerate(picture):
        top, bottom = levels[2 * y], levels[2 * y + 1]
        if column in word:
            character, wanted = word[column], colours.DIM
        elif column in marked:
            character, wanted = "┊", colours.marked_cell(bottom, dim=column in dimmed)
        elif column in dimmed:
            character, wanted = colours.dimmed_cell(top, bottom)
        else:
            character, wanted = ("▀" if top != bottom else " "), colours.heat_cell(top, bottom)
        if wanted is style:
            text += character
            continue
        if text:
            segments.append(Segment(text, style))
        text, style = character, wanted
    segments.append(Segment(text, style))
    return segments
