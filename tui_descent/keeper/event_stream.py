"""Merges the two channels of a trainer, the ring in shared memory and the socket, into one ordered stream of events.

Losses and readings come through the ring, all other events through the socket. An event of step k is placed after
update k - 1 and before update k; the readings of step k are placed after update k.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.codec import FrameError, decode, from_ring, from_trainer
from tui_descent.protocol.events import AnyEvent, Noted, RunStarted, StepsCompleted, StepsMissed
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import ReadingRecord, Ring, StepRecord
from tui_descent.telemetry.history import History


class Position(msgspec.Struct, frozen=True):
    """How many updates, readings and events of the trainer are in the run's record, counted from the run's start."""

    steps: int = 0
    readings: int = 0
    events: int = 0

    def values(self) -> dict[str, int]:
        """As values of the record's table `about`."""
        return {"ring_steps": self.steps, "ring_readings": self.readings, "link_events": self.events}

    @classmethod
    def of(cls, about: dict[str, Any]) -> Position:
        """The inverse of `values`."""
        return cls(*(int(about.get(key) or 0) for key in cls().values()))


class EventStream:
    """Merges the ring and the socket.

    `history` gives the run's current segment and step. Apply each event to it before you ask for the next event.
    """

    def __init__(self, history: History) -> None:
        self.ring: Ring | None = None  # opened at the `RunStarted` event, or by `resume`
        self.events = 0  # how many of the trainer's events have been yielded, by earlier keepers too
        self._repeated = 0  # how many events arrive again, because the keeper before this one has recorded them
        self._history = history
        self._steps: list[StepRecord] = []  # records read from the ring but not published yet
        self._readings: list[ReadingRecord] = []
        self._steps_read = 0
        self._steps_missed = 0
        self._published = (-1, -1)  # segment and step of the last update that was published
        self._warned_of_readings = False

    @property
    def position(self) -> Position:
        """How much of the trainer's output has been yielded."""
        steps, readings = (0, 0) if self.ring is None else self.ring.position
        return Position(steps=steps - len(self._steps), readings=readings - len(self._readings), events=self.events)

    def resume(self, trainer: Trainer, position: Position, *, sent_before: int) -> None:
        """Go on from `position`, where the last keeper's record ends. The trainer sends its events again, except the
        first `sent_before`. Raises `ChannelError` if the ring cannot be opened.
        """
        self.ring = trainer.ring()
        self.ring.skip_to(position.steps, position.readings)
        self.events = position.events
        self._repeated = max(0, position.events - sent_before)
        self._published = (self._history.segment, self._history.steps - 1)
        self.ring.raise_flag()

    def new_events(self, trainer: Trainer) -> Iterator[AnyEvent]:
        """Yield all new events. Raises `ChannelError` if the ring cannot be opened.

        The ring is read before the socket. Events that were sent before an update in the ring have then already
        arrived.
        """
        yield from self._read_ring()
        steps_read = self._steps_read
        events = _receive(trainer)
        events, self._repeated = events[self._repeated :], max(0, self._repeated - len(events))
        yield from self._read_ring()
        known: object = None  # the place of the previous event
        for event, placed in zip(events, _places(events), strict=True):
            if placed is None:
                yield from self._publish_steps(steps_read)
            else:
                segment = self._steps[-1].segment if self._steps else self._history.segment
                place = (getattr(placed, "segment", segment), placed.step)
                if place != known:  # a script may log thousands of metrics at one step
                    known = place
                    later = sum((r.segment, r.step) >= place for r in self._steps)
                    yield from self._publish_steps(self._steps_read - later)
            if isinstance(event, RunStarted):
                self.ring = trainer.ring()
                self.ring.raise_flag()  # requests may have been sent before there was a ring with a flag to raise
                yield from self._read_ring()
                known = None
            self.events += 1
            yield event
        yield from self._publish_steps(steps_read)

    def last_events(self) -> Iterator[AnyEvent]:
        """Yield what is left in the ring after the trainer has exited.

        The trainer leaves its `RunEnded` there too, in case it could not be sent.
        """
        yield from self._read_ring()
        yield from self._publish_steps(self._steps_read)
        body = self.ring.last_events() if self.ring is not None else b""
        with contextlib.suppress(FrameError):  # the trainer may have died while it wrote them
            yield from decode(from_ring, body) if body else ()

    def _read_ring(self) -> Iterator[AnyEvent]:
        ring = self.ring
        if ring is None:
            return
        while chunk := ring.read_steps():
            if ring.missed > self._steps_missed:
                yield from self._publish_steps(self._steps_read)
                count, self._steps_missed = ring.missed - self._steps_missed, ring.missed
                yield StepsMissed(segment=self._history.segment, step=chunk[0].step, count=count)
            self._steps += chunk
            self._steps_read += len(chunk)
        self._readings += ring.read_readings()
        if ring.missed_readings and not self._warned_of_readings:
            self._warned_of_readings = True
            text = "readings dropped: they arrive faster than they can be sent; raise --watch-every"
            yield Noted(step=self._history.steps, text=text, level="warning")

    def _publish_steps(self, end: int) -> Iterator[AnyEvent]:
        """Publish the updates up to number `end` that were read but not yet published, with their readings."""
        count = max(0, end - (self._steps_read - len(self._steps)))
        steps = self._steps[:count]
        for event in _consecutive(steps):
            self._steps = self._steps[len(event.losses) :]  # `position` counts what has been yielded
            yield event
        if steps:
            self._published = (steps[-1].segment, steps[-1].step)
        readings = [r for r in self._readings if (r.segment, r.step) <= self._published]
        self._readings = self._readings[len(readings) :]
        for reading in readings:
            yield unpack(reading)


def _receive(trainer: Trainer) -> list[AnyEvent]:
    """The events that have arrived in the socket. A malformed event closes it."""
    events: list[AnyEvent] = []
    try:
        for body in trainer.link.receive():
            events.append(decode(from_trainer, body))
    except FrameError as error:
        trainer.link.closed = str(error)
    return events


def _places(events: list[AnyEvent]) -> list[Any]:
    """For each event, the event whose step gives its place: itself, or the next one that has a step. None if there is
    none.
    """
    places: list[Any] = []
    placed: AnyEvent | None = None
    for event in reversed(events):
        placed = event if hasattr(event, "step") else placed
        places.append(placed)
    return places[::-1]


def _consecutive(records: list[StepRecord]) -> Iterator[StepsCompleted]:
    """One event for each run of consecutive updates of one segment."""
    start = 0
    for n in range(1, len(records) + 1):
        if n < len(records):
            a, b = records[n - 1], records[n]
            if (b.segment, b.step) == (a.segment, a.step + 1):
                continue
        part = records[start:n]
        start = n
        yield StepsCompleted(
            segment=part[0].segment,
            first=part[0].step,
            losses=[r.loss for r in part],
            lrs=[r.lr for r in part],
            times_s=[r.time_s for r in part],
            skipped=tuple(r.step for r in part if r.skipped),
        )
