"""The time axis of loss and heat-map: columns of 2^k steps on multiples of their width, so the picture stands still."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tui_descent.dashboard.text.layer_names import labels
from tui_descent.dashboard.text.numbers import axis_count
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import KnobTurned, Marked
from tui_descent.telemetry.history import History
from tui_descent.telemetry.layers import Gradients
from tui_descent.telemetry.pyramid import Pyramid

RECENT_STEPS = 200
MIN_GUTTER, MAX_GUTTER = 7, 12


@dataclass(frozen=True, slots=True)
class Timeline:
    """`width` steps a column; `first` is the leftmost bin's number."""

    width: int
    first: int
    columns: int
    last_step: int

    @classmethod
    def of(cls, history: History, columns: int, *, recent: bool) -> Timeline:
        """The whole run, or its last steps and as many more as fit."""
        columns, last = max(1, columns), max(0, (history.steps if recent else history.span) - 1)
        # In the window of the last steps the picture moves on by eighths: column by column it would all be repainted.
        page = max(1, columns // 8)
        wanted = min(last + 1, RECENT_STEPS) if recent else last + 1
        room = columns - page if recent and last + 1 > RECENT_STEPS else columns
        width = 1
        while -(-wanted // width) > max(1, room):
            width *= 2
        newest = last // width
        first = 0 if newest < columns else -(-(newest - columns + 1) // page) * page
        return cls(width, first, columns, max(0, history.steps - 1))

    @property
    def first_step(self) -> int:
        """The leftmost step."""
        return self.first * self.width

    @property
    def steps_a_dot(self) -> int:
        """Braille has two dots a column; where a column is one step, the step stands on the first."""
        return max(1, self.width // 2)

    def dot(self, bin_: int) -> int:
        """The dot column of a bin of `steps_a_dot` steps."""
        return (bin_ * self.steps_a_dot - self.first_step) // self.steps_a_dot * (2 if self.width == 1 else 1)

    def column(self, step: int) -> int | None:
        """Where a step stands, if it does."""
        column = step // self.width - self.first
        return column if 0 <= column < self.columns else None

    def ticks(self) -> dict[int, str]:
        """Step numbers by column: round multiples, as many as are read with ease."""
        units = (m * 10**e for e in range(16) for m in (1, 2, 5))
        unit = next(u for u in units if u / self.width >= 12)
        end = (self.first + self.columns) * self.width
        start = -(-self.first_step // unit) * unit
        return {column: axis_count(s) for s in range(start, end, unit) if (column := self.column(s)) is not None}


def gutter(view: View, width: int) -> int:
    """Cells to the left of the first column, the same in every panel on this axis."""
    longest = max((len(name) for name in labels(view.layers, MAX_GUTTER)), default=0)
    return min(max(longest + 2, MIN_GUTTER), MAX_GUTTER, max(MIN_GUTTER, width // 4))


def marks(view: View, timeline: Timeline) -> list[tuple[int, str]]:
    """Interventions and marks of this segment by column, in order: `residual on`."""
    history = view.history
    found: list[tuple[int, str]] = []
    events: Iterable[KnobTurned | Marked] = sorted((*history.interventions, *history.marks), key=lambda e: e.step)
    for event in events:
        column = timeline.column(event.step)
        if event.segment != history.segment or column is None:
            continue
        if isinstance(event, Marked):
            found.append((column, event.text))
        elif event.knob != "pace":
            found.append((column, f"{event.knob} {event.new}"))
    return found


class Columns:
    """A memo of a pyramid's closed bins: only the open one is read again each frame."""

    def __init__(self) -> None:
        self._of: tuple[Pyramid | Gradients, int, int] | None = None
        self._bins: list[tuple[int, list[float]]] = []

    def read(self, pyramid: Pyramid | Gradients, width: int, first: int, last: int) -> list[tuple[int, list[float]]]:
        """The same as `pyramid.window`."""
        key = (pyramid, width, first)
        if key != self._of or not self._bins or last < self._bins[-1][0] * width:
            self._of, self._bins = key, pyramid.window(width, first, last)
            return self._bins
        newest = self._bins.pop()[0]
        fresh = pyramid.window(width, max(first, newest * width), last)
        self._bins += [bin_ for bin_ in fresh if not self._bins or bin_[0] > self._bins[-1][0]]
        return self._bins
