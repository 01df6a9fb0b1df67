"""The time axis of loss chart and heat-map. A column covers a block of 2^k steps, so new steps change only the newest
column until k grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.raster import Raster
from tui_descent.dashboard.text.layer_names import layer_labels
from tui_descent.dashboard.text.numbers import axis_step
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import KnobTurned, Marked
from tui_descent.scenario.knobs import NEUTRAL_KNOBS, shown_value
from tui_descent.telemetry.gradient_history import GradientHistory
from tui_descent.telemetry.history import History
from tui_descent.telemetry.pyramid import Pyramid

RECENT_STEPS = 200
MIN_GUTTER, MAX_GUTTER = 7, 12


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """`bin_width` is the number of steps per column; `first` is the bin number of the leftmost column. `spread` is the
    number of columns per step: more than 1 only in a short run, with a `bin_width` of 1.
    """

    bin_width: int
    first: int
    columns: int
    last_step: int
    spread: int = 1

    @classmethod
    def of(cls, history: History, columns: int, *, recent: bool, planned: int | None = None) -> TimeAxis:
        """An axis over the whole run, or over at least its last `RECENT_STEPS` steps. The `planned` steps of a short
        run are spread over the whole width; after them there is room for as many again.
        """
        columns, last = max(1, columns), max(0, (history.steps if recent else history.span) - 1)
        # The axis scrolls by an eighth of its width at a time. Scrolling by single columns would repaint everything
        # each time.
        page = max(1, columns // 8)
        wanted = min(last + 1, RECENT_STEPS) if recent else last + 1
        room = columns - page if recent and last + 1 > RECENT_STEPS else columns
        width = 1
        while -(-wanted // width) > max(1, room):
            width *= 2
        newest = last // width
        first = 0 if newest < columns else -(-(newest - columns + 1) // page) * page
        shown = planned * -(-wanted // planned) if planned else columns
        spread = max(1, columns // (shown + 1)) if width == 1 and first == 0 and not recent else 1
        return cls(width, first, columns, max(0, history.steps - 1), spread)

    @property
    def first_step(self) -> int:
        """The first step of the leftmost column."""
        return self.first * self.bin_width

    @property
    def steps_per_dot(self) -> int:
        """Braille has two dots per column; when a column is a single step, only the first is used."""
        return max(1, self.bin_width // 2)

    def dot(self, bin_: int) -> int:
        """The dot column of a bin of `steps_per_dot` steps."""
        dots = 2 * self.spread if self.bin_width == 1 else 1
        return (bin_ * self.steps_per_dot - self.first_step) // self.steps_per_dot * dots

    def column(self, step: int) -> int | None:
        """The column of a step, or None if the step is not on the axis."""
        column = (step // self.bin_width - self.first) * self.spread
        return column if 0 <= column < self.columns else None

    def ticks(self) -> dict[int, str]:
        """Round step numbers by column, at least 12 columns apart."""
        units = (m * 10**e for e in range(16) for m in (1, 2, 5))
        unit = next(u for u in units if u * self.spread / self.bin_width >= 12)
        start = -(-self.first_step // unit) * unit
        steps = range(start, self.end_step + 1, unit)
        return {column: axis_step(s) for s in steps if (column := self.column(s)) is not None}

    @property
    def end_step(self) -> int:
        """The last step of the rightmost column."""
        return (self.first + self.columns) * self.bin_width // self.spread - 1


def gutter(view: View, width: int) -> int:
    """The number of cells left of the first column. It is the same in every panel with this axis."""
    longest = max((len(name) for name in layer_labels(view.layers, MAX_GUTTER)), default=0)
    return min(max(longest + 2, MIN_GUTTER), MAX_GUTTER, max(MIN_GUTTER, width // 4))


class Mark(NamedTuple):
    """An intervention or a mark on a time axis: its name, such as `residual on`, and in short `residual`."""

    column: int
    text: str
    short: str


def marks(view: View, time_axis: TimeAxis) -> list[Mark]:
    """The segment's interventions and marks, in order."""
    history = view.history
    found: list[Mark] = []
    events: Iterable[KnobTurned | Marked] = sorted((*history.interventions, *history.marks), key=lambda e: e.step)
    for event in events:
        column = time_axis.column(event.step)
        if event.segment != history.segment or column is None:
            continue
        if isinstance(event, Marked):
            found.append(Mark(column, event.text, event.text))
        elif event.knob not in NEUTRAL_KNOBS:
            found.append(Mark(column, f"{event.knob} {shown_value(event.knob, event.new)}", event.knob))
    return found


def draw_marks(raster: Raster, view: View, time_axis: TimeAxis) -> None:
    """Draw a dashed line at each mark. Curves and points stay in front of it."""
    for column in {mark.column for mark in marks(view, time_axis)}:
        for row in range(raster.rows):
            if raster.is_blank(column, row):
                raster.write(column, row, "┊", colours.MARK)


class BinCache:
    """Caches the completed bins of a history's pyramid. Only the newest bin is read again in each frame."""

    def __init__(self) -> None:
        self._key: tuple[Pyramid | GradientHistory, int, int] | None = None
        self._bins: list[tuple[int, list[float]]] = []

    def read(
        self, pyramid: Pyramid | GradientHistory, width: int, first: int, last: int
    ) -> list[tuple[int, list[float]]]:
        """Return what `pyramid.window` returns."""
        key = (pyramid, width, first)
        if key != self._key or not self._bins or last < self._bins[-1][0] * width:
            self._key, self._bins = key, pyramid.window(width, first, last)
            return self._bins
        newest = self._bins.pop()[0]
        fresh = pyramid.window(width, max(first, newest * width), last)
        self._bins += [bin_ for bin_ in fresh if not self._bins or bin_[0] > self._bins[-1][0]]
        return self._bins
