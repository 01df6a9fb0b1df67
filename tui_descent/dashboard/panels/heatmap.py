"""Gradient flow: layer × time of log10 grad_rms, two layers a text row where need be, output at the top."""

from __future__ import annotations

import math
from itertools import pairwise

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.log_scale import Scale
from tui_descent.dashboard.charts.time_axis import Columns, Timeline, gutter, marks
from tui_descent.dashboard.panels.panel import Panel, empty
from tui_descent.dashboard.text.layer_names import is_norm, labels
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import decade
from tui_descent.dashboard.view import View
from tui_descent.telemetry.layers import LOG_FLOOR

Levels = tuple[int | None, ...]


class HeatmapPanel(Panel):
    """Root-mean-square gradient of every layer's weights over time."""

    pace_s = 0.35
    about = (
        "Root-mean-square gradient of each layer's weights, one row a layer (output above, input below), on the loss "
        "panel's time axis. Dark is small, bright is large; the border carries the scale, which only an undo "
        "or a redo narrows. Unit: loss per unit of weight."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns = Columns()
        self._scale = Scale(-6, 0)
        self._levels: dict[tuple[object, ...], Levels] = {}

    def cares(self, view: View) -> object:
        """A new reading, other layers or another axis; not each step."""
        readings = view.history.readings
        statuses = tuple(readings.statuses) if readings else ()
        width = self.content_size.width
        timeline = Timeline.of(view.history, width - gutter(view, width), recent=view.recent)
        # Within a column the newest reading moves the picture little: four times a column is enough.
        newest = (readings.segment, readings.step // max(1, timeline.width // 4)) if readings else None
        interventions = (len(view.history.interventions), len(view.history.marks), view.history.state.state)
        column = (timeline.width, timeline.first, timeline.last_step // timeline.width)
        layers = view.history.structure
        return view.history, layers, newest, statuses, column, view.selected, view.recent, interventions, view.connected

    def heading(self, view: View) -> tuple[str, str]:
        """What and which way round above, the scale below."""
        ramp = f"{decade(self._scale.low)} {colours.ramp(12)} {decade(self._scale.high)}"
        return "Gradient flow  [dim]layer × time, output at the top[/dim]", f"{ramp}  ∂L/∂W rms"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """One strip a text row."""
        self._scale.follow(view.history)
        grads = view.history.grads.get(view.history.segment)
        if not grads or not view.layers:
            return empty(view, width, height, "reading")
        left = gutter(view, width)
        timeline = Timeline.of(view.history, width - left, recent=view.recent)
        bins = self._columns.read(grads, timeline.width, timeline.first_step, timeline.last_step)
        for _, values in bins:
            self._scale.cover(values, LOG_FLOOR)
        picture = self._picture(bins, timeline, 2 * height)
        marked = {column for column, _ in marks(view, timeline)}
        names = row_names(view, height, left - 2)
        rows = []
        for y in range(height):
            name, chosen = names[y]
            line = Line().put("▸" if chosen else " ", colours.NAME)
            line.fit(f"{name:>{left - 2}} ", left - 1, colours.BRIGHT if chosen else colours.DIM)
            said = _said(idle_word(view, layers_of_row(y, height, len(view.layers))), picture, y)
            rows.append(line.extend(_row(picture, y, marked, said)).strip(width))
        return rows

    def _picture(self, bins: list[tuple[int, list[float]]], timeline: Timeline, halves: int) -> list[Levels]:
        """Palette levels, column by column. One without a reading shows the reading before, if that is not long ago."""
        shape = (halves, self._scale.low, self._scale.high)
        by_column = {bin_ - timeline.first: values for bin_, values in bins}
        newest = timeline.last_step // timeline.width - timeline.first
        nothing: Levels = (None,) * halves
        patience, since = _usual_gap(bins) * 2, 0
        columns: list[Levels] = []
        kept: dict[tuple[object, ...], Levels] = {}
        for column in range(timeline.columns):
            values = by_column.get(column)
            if values is None:
                since += 1
                columns.append(columns[-1] if columns and column <= newest and since <= patience else nothing)
                continue
            since = 0
            # The open column's values still move, so they are part of what it is known by.
            key = (column + timeline.first, timeline.width, shape, tuple(values))
            kept[key] = self._levels.get(key) or column_levels(values, self._scale, halves)
            columns.append(kept[key])
        self._levels = kept
        return columns


def _usual_gap(bins: list[tuple[int, list[float]]]) -> int:
    """Columns from one reading to the next, in the middle of all such distances."""
    gaps = sorted(b[0] - a[0] for a, b in pairwise(bins))
    return gaps[len(gaps) // 2] if gaps else 1


def column_levels(values: list[float], scale: Scale, halves: int) -> Levels:
    """Half rows from the top: the output layer first. More layers than half rows are averaged."""
    upward, count = values[::-1], len(values)
    levels: list[int | None] = []
    for half in range(halves):
        first = half * count // halves
        last = max(first + 1, (half + 1) * count // halves)
        known = [v for v in upward[first:last] if not math.isnan(v)]
        levels.append(colours.level_of(sum(known) / len(known), scale.low, scale.high) if known else None)
    return tuple(levels)


def layers_of_row(y: int, height: int, count: int) -> range:
    """The layers, in forward order, that a text row shows."""
    first = 2 * y * count // (2 * height)
    last = max(first + 1, -(-(2 * y + 2) * count // (2 * height)))
    return range(max(0, count - last), count - first)


def row_names(view: View, height: int, width: int) -> list[tuple[str, bool]]:
    """Beside each text row its layer's name, where there is room to read it, and whether it is the selected one."""
    names = labels(view.layers, width)
    count = len(names)
    rows = [("", view.selected in layers_of_row(y, height, count)) for y in range(height)]
    # Ends and selection first; then as many as stand apart, norms last.
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
    """`frozen` or `unused` where that is what all of a row's layers are now."""
    words = {view.idle(layer) for layer in layers}
    return words.pop() if len(words) == 1 else ""


def _said(word: str, picture: list[Levels], y: int) -> dict[int, str]:
    """A word's letters by column, in the dark that a row ends with: after what was measured before it fell idle."""
    if not word:
        return {}
    lit = [n for n, levels in enumerate(picture) if levels[2 * y] is not None or levels[2 * y + 1] is not None]
    start = lit[-1] + 2 if lit else 1
    return dict(enumerate(word, start)) if start + len(word) <= len(picture) else {}


def _row(picture: list[Levels], y: int, marked: set[int], said: dict[int, str]) -> list[Segment]:
    segments: list[Segment] = []
    text, style = "", Style()
    for column, levels in enumerate(picture):
        top, bottom = levels[2 * y], levels[2 * y + 1]
        if column in said:
            character, wanted = said[column], colours.DIM
        elif column in marked:
            character, wanted = "┊", colours.marked(bottom)
        else:
            character, wanted = ("▀" if top != bottom else " "), colours.cell(top, bottom)
        if wanted is style:
            text += character
            continue
        if text:
            segments.append(Segment(text, style))
        text, style = character, wanted
    segments.append(Segment(text, style))
    return segments
