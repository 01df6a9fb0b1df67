"""How far a loop may go without being asked anything, and what its steps and their watching take of the time."""

from __future__ import annotations

import contextlib
import os
import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.control import Control
from tui_descent.training.lane import Lane
from tui_descent.training.updates import Updates

# Of the time gone: with less of it off a processor it is not worth 20 µs to ask for what, but now and then.
LITTLE, SELDOM = 0.02, 50


class Clock:
    """The calling thread's CPU seconds, and those that it waited of its own accord, not for a processor in use.

    On Linux alone can the two waits be told apart, and only once `open`; otherwise none is told.
    """

    def __init__(self) -> None:
        self._schedule: int | None = None
        self._busy_s, self._wall_s, self._queued_s = time.thread_time(), time.perf_counter(), 0.0
        self._unasked = 0  # times since the queue was asked for

    def open(self) -> None:
        """The calling thread is the one."""
        self.close()
        with contextlib.suppress(OSError):
            self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._queued_s = self._queue_s()
        self._busy_s, self._wall_s = time.thread_time(), time.perf_counter()

    def since(self) -> tuple[float, float]:
        """Seconds busy and seconds waited since the last call."""
        busy_s, wall_s = time.thread_time(), time.perf_counter()
        busy_s, self._busy_s = busy_s - self._busy_s, busy_s
        wall_s, self._wall_s = wall_s - self._wall_s, wall_s
        gone_s = wall_s - busy_s
        self._unasked += 1
        if self._schedule is None or (gone_s < LITTLE * wall_s and self._unasked < SELDOM):
            return busy_s, 0.0
        self._unasked = 0
        # What was queued for while nobody asked is taken off now, and is little.
        before_s, self._queued_s = self._queued_s, self._queue_s()
        return busy_s, max(gone_s - (self._queued_s - before_s), 0.0)

    def close(self) -> None:
        """Let the file go."""
        if self._schedule is not None:
            os.close(self._schedule)
            self._schedule = None

    def _queue_s(self) -> float:
        """Seconds of waiting for a processor, from the thread's beginning."""
        assert self._schedule is not None
        # Nanoseconds on a processor, nanoseconds of waiting for one, turns.
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9


class Stretch:
    """Of one run: the sampler's clock. With `waits`, what the loop waits for its data pays for readings, too."""

    def __init__(self, control: Control, updates: Updates, sampler: Sampler, lane: Lane, *, waits: bool) -> None:
        self._control, self._updates, self._sampler, self._lane = control, updates, sampler, lane
        self._clock = Clock()
        self._waits = waits
        self._steps = 0  # since the last look at the clock
        self._own_s, self._own_steps = 0.0, 0  # what watching took of so many of them

    def unasked(self) -> int:
        """Of how many steps from here nothing is asked but their record, unless the keeper raises its flag."""
        control = self._control
        if self._updates.asks or not control.idle or control.steering.clips:
            return 0
        to_look = self._sampler.next_look - self._steps
        planned = min(control.steps_to_plan, self._sampler.steps_to_reading(control.step) - 1)
        return int(max(1, min(to_look, planned))) if planned >= 1 else 0

    def went(self, steps: int) -> None:
        """So many steps more."""
        self._steps += steps

    def look(self, *, now: bool = False) -> None:
        """Between two steps: when it is time or `now` the sampler is told how long they took."""
        gone = self._lane.gone()
        self._steps += gone
        self._own_steps += gone
        if self._steps and (now or self._steps >= self._sampler.next_look):
            busy_s, waited_s = self._clock.since()
            self._own_s += self._lane.own_s
            self._lane.own_s = 0.0
            if self._own_steps:
                self._sampler.hooked(self._own_s, self._own_steps)
                self._own_s, self._own_steps = 0.0, 0
            if self._control.steering.pace is not None:
                waited_s = 0.0  # it is ours, and paid out otherwise
            self._sampler.stepped(busy_s, steps=self._steps, waited_s=waited_s)
            self._steps = 0

    def count_own(self, start_s: float, *, steps: int = 1) -> None:
        """What watching took of so many steps, or between two; what a reading takes has an account of its own."""
        if not self._control.stood and self._control.steering.pace is None:
            self._own_s += time.perf_counter() - start_s
            self._own_steps += steps

    def begin(self) -> None:
        """The loop begins, in this thread."""
        if self._waits:
            self._clock.open()
        self.forget()

    def close(self) -> None:
        """The run is over."""
        self._clock.close()

    def forget(self) -> None:
        """Something else than steps took time: it counts from here."""
        self._lane.gone()
        self._clock.since()
        self._steps = 0
        self._sampler.stood()
