"""Times the loop for the sampler: how long its steps take, and how much of that is ours."""

from __future__ import annotations

import contextlib
import os
import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.progress import Progress
from tui_descent.training.steering import Steering

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


class StepTimer:
    """Of one run. With `waits`, what the loop waits for its data pays for readings, too."""

    def __init__(self, sampler: Sampler, progress: Progress, steering: Steering, *, waits: bool) -> None:
        self._sampler, self._progress, self._steering, self._waits = sampler, progress, steering, waits
        self._clock = Clock()
        self._steps = 0  # since the last look at the clock
        self._own_s, self._own_steps = 0.0, 0  # what watching took of so many of them

    @property
    def steps_to_look(self) -> int:
        """Steps until the clock is worth a look."""
        return self._sampler.next_look - self._steps

    def count(self) -> None:
        """One step more."""
        self._steps += 1

    def add_own(self, start_s: float, before_s: float = 0.0) -> None:
        """Watching a step took the time since `start_s`, and `before_s` before. Not while paused or paced."""
        if not self._progress.stood and self._steering.pace is None:
            self._own_s += time.perf_counter() - start_s + before_s
            self._own_steps += 1

    def look(self, *, now: bool = False) -> None:
        """Between two steps: when it is time or `now`, report to the sampler how long the steps took."""
        if not self._steps or not (now or self._steps >= self._sampler.next_look):
            return
        busy_s, waited_s = self._clock.since()
        if self._own_steps:
            self._sampler.hooked(self._own_s, self._own_steps)
            self._own_s, self._own_steps = 0.0, 0
        if self._steering.pace is not None:
            waited_s = 0.0  # the pace's wait is ours
        self._sampler.stepped(busy_s, steps=self._steps, waited_s=waited_s)
        self._steps = 0

    def begin(self) -> None:
        """The loop begins, in this thread."""
        if self._waits:
            self._clock.open()
        self.restart()

    def restart(self) -> None:
        """Something else than steps took time: count from here."""
        self._clock.since()
        self._steps = 0
        self._sampler.stood()

    def close(self) -> None:
        """The run is over."""
        self._clock.close()
