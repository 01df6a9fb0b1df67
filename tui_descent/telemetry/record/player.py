"""Moves through a record: to any step at once, or forwards at a multiple of the speed at which the run was made."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from tui_descent.protocol.events import AnyEvent, HistorySent, LaneSteps, StepsCompleted
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record.reader import Place, Record, part_of

SPEEDS = (1, 2, 5, 10, 20, 50, 100)
LONGEST_WAIT_S = 1.0  # a longer wait between two steps, as a pause, is shortened to this
LAP_S = 1 / 30  # how long the steps of a lane are shown, because a race has no times
MOST_AT_ONCE = 20_000  # steps that one call of `advance` makes
# On the way to a position, the history is kept every so many steps, because people go back by small steps.
KEEP_EVERY, MOST_KEPT = 8192, 12


class Player:
    """A place in a record, and the history there.

    A `position` counts the steps of all segments in the order in which they were made, from 0 to `total`. In a race it
    counts the laps of all lanes. The history at a position has all that happened before the next step.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._spans = record.spans()
        self._ends = list(accumulate(span.length for span in self._spans))
        self.total = self._ends[-1] if self._ends else 0
        self.end = record.position()  # the segment and the step at the end
        self.changes = self._positions_of_changes()
        self.speed = SPEEDS[0]
        self.playing = False
        self.position = 0
        self.history = History()
        self._events: Iterator[AnyEvent] = iter(())
        self._next: StepsCompleted | LaneSteps | None = None  # the steps that follow
        self._checkpoints = [(self._position_of(place), place) for place in record.checkpoints()]  # the newest first
        self._kept: dict[int, HistorySent] = {}  # by position
        self._clock_s = self._lap_s = 0.0  # the time on the run's clock; when the next lap of a race is due
        self.seek(self.total)

    @property
    def damage(self) -> str:
        """What of the record could not be read so far; "" if nothing is missing."""
        return self._record.damage

    @property
    def at_end(self) -> bool:
        """Whether no step follows."""
        return self.position >= self.total

    def seek(self, position: int) -> None:
        """Go to a position. One outside of the record is moved to its nearest end."""
        position = min(max(position, 0), self.total)
        if position == self.total:
            self.history, self._events, self._next = self._record.history(), iter(()), None
            self.position = position
        else:
            self._start_before(position)
            self._forwards(position - self.position)
        if self.history.task is None:  # it is not in a checkpoint
            here = None if position == self.total else self._place_before(position)
            self.history.task = self._record.picture_at(here)
        self._clock_s = self._due_s()

    def _start_before(self, position: int) -> None:
        """Go to the nearest position before this one at which the history is known."""
        if self._next is None or self.position > position:
            self.position, self.history = 0, History()
            self._events = self._record.events_from(Place(0, 0, 0))
            self._fetch()
        kept = max((known for known in self._kept if self.position < known <= position), default=None)
        for known, place in self._checkpoints:
            if max(kept or 0, self.position) < known <= position and (found := self._record.history_in(place)):
                self.position, self.history, self._events = known, found, self._record.events_from(place)
                self._fetch()
                return
        if kept is not None:
            self.position, self.history = kept, History.receive(self._kept[kept])
            self._events = self._record.events_from(self._place_before(kept))
            self._fetch()

    def _place_before(self, position: int) -> Place:
        number = bisect_right(self._ends, position)
        span = self._spans[number]
        return self._record.place_before(span, position - self._ends[number] + span.length)

    def play(self) -> None:
        """Play from here; from the beginning if this is the end."""
        if self.at_end:
            self.seek(0)
        self.playing = self.total > 0

    def change_speed(self, by: int) -> None:
        """Choose the next higher or lower speed."""
        self.speed = SPEEDS[min(max(SPEEDS.index(self.speed) + by, 0), len(SPEEDS) - 1)]

    def advance(self, seconds: float) -> None:
        """Make the steps of the next `seconds`, while it plays."""
        if not self.playing:
            return
        self._clock_s += seconds * self.speed
        made = 0
        while self._next is not None and made < MOST_AT_ONCE:
            due_s = self._due_s()
            # After a long wait, and where the clock starts again after the run was resumed.
            if not self._clock_s <= due_s <= self._clock_s + LONGEST_WAIT_S * self.speed and due_s > self._clock_s:
                self._clock_s = due_s - LONGEST_WAIT_S * self.speed
            if due_s > self._clock_s:
                break
            made += self._make(self._due_by_now())
        if self._next is None:
            self.playing = False

    def _due_s(self) -> float:
        """When the next step is due, on the run's clock."""
        if isinstance(self._next, StepsCompleted):
            return self._next.times_s[0]
        return self._clock_s if self._next is None else self._lap_s

    def _due_by_now(self) -> int:
        """How many of the next steps are due."""
        if isinstance(self._next, StepsCompleted):
            return max(1, min(bisect_right(self._next.times_s, self._clock_s), MOST_AT_ONCE))
        return 1

    def _forwards(self, count: int) -> None:
        while count > 0 and self._next is not None:
            made = self._make(min(count, KEEP_EVERY - self.position % KEEP_EVERY))
            count -= made
            if self.position % KEEP_EVERY == 0 and count:
                self._kept[self.position] = self.history.send()
                if len(self._kept) > MOST_KEPT:
                    del self._kept[next(iter(self._kept))]

    def _make(self, count: int) -> int:
        """Make up to `count` of the next steps, and take what follows them; returns how many were made."""
        event = self._next
        if isinstance(event, StepsCompleted):
            made = min(count, len(event.losses))
            self.history.apply(part_of(event, 0, made))
            self._next = part_of(event, made, None) if made < len(event.losses) else None
        else:
            assert event is not None
            made, self._next = 1, None
            self.history.apply(event)
            self._lap_s += LAP_S / max(1, len(self.history.lanes))
        self.position += made
        if self._next is None:
            self._fetch()
        return made

    def _fetch(self) -> None:
        """Apply the events before the next step."""
        self._next = None
        for event in self._events:
            if isinstance(event, StepsCompleted | LaneSteps):
                self._next = event
                return
            self.history.apply(event)

    def _positions_of_changes(self) -> tuple[int, ...]:
        return tuple(self._position_of(Place(0, row, after)) for row, after in self._record.places_of_interventions())

    def _position_of(self, place: Place) -> int:
        """The position of a place; in a race that of the next lap."""
        number = bisect_right([span.row for span in self._spans], max(place.row, place.seq if not place.row else 0)) - 1
        if number < 0:
            return 0
        span = self._spans[number]
        return self._ends[number] - span.length + min(place.after, span.length)
