"""Times the loop for the sampler: how long its steps take, and how much of that is ours."""

from __future__ import annotations

import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering


class StepTimer:
    """Of one run, in CPU seconds of the training thread."""

    def __init__(self, sampler: Sampler, progress: Progress, steering: Steering) -> None:
        self._sampler, self._progress, self._steering = sampler, progress, steering
        self._last = time.thread_time(), time.perf_counter()
        self._steps = 0  # since the last look at the clock
        self._own_s = self._own_fast_s = 0.0  # what watching took of them

    def count(self) -> None:
        """One step more."""
        self._steps += 1

    def add_own(self, busy_s: float) -> None:
        """Watching took the CPU time since `busy_s`, without a reading. Not counted while paused or paced."""
        if not self._progress.stood and self._steering.pace is None:
            self._own_s += time.thread_time() - busy_s

    def add_fast(self, start_s: float, hooks_s: float) -> None:
        """Watching a fast step took the time since `start_s`, and `hooks_s` in the optimizer's hooks.

        By the wall clock, which is cheaper to read than the CPU clock.
        """
        self._own_fast_s += time.perf_counter() - start_s + hooks_s

    def look(self) -> None:
        """Between two steps: report to the sampler how long the steps since the last look took."""
        if not self._steps:
            return
        busy_s, elapsed_s = self._since()
        # The wall clock includes interruptions.
        self._sampler.hooked(self._own_s + self._own_fast_s * min(1.0, busy_s / elapsed_s))
        self._own_s = self._own_fast_s = 0.0
        self._sampler.stepped(busy_s, steps=self._steps)
        self._steps = 0

    def restart(self) -> None:
        """Something else than steps took time: count from here."""
        self._since()
        self._steps = 0
        self._sampler.paused()

    def _since(self) -> tuple[float, float]:
        """CPU seconds of this thread and seconds since the last call."""
        (busy_s, wall_s), self._last = self._last, (time.thread_time(), time.perf_counter())
        return self._last[0] - busy_s, self._last[1] - wall_s
