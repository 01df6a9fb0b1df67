"""Measures for the sampler how long the loop's steps take, and how much of this time watching takes."""

from __future__ import annotations

import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering


class StepTimer:
    """The times of one run, in CPU seconds of the training thread."""

    def __init__(self, sampler: Sampler, progress: Progress, steering: Steering) -> None:
        self._sampler, self._progress, self._steering = sampler, progress, steering
        self._last_s = time.thread_time(), time.perf_counter()
        self._steps = 0  # since the last report
        self._watching_s = self._watching_fast_s = 0.0  # since the last report

    def count_step(self) -> None:
        """Count one more step."""
        self._steps += 1

    def add_step(self, busy_s: float) -> None:
        """Add the cost of watching a step without a reading: the CPU time since `busy_s`.

        It is not counted while the run is paused or paced.
        """
        if not self._progress.interrupted and self._steering.pace is None:
            self._watching_s += time.thread_time() - busy_s

    def add_fast_step(self, start_s: float, hooks_s: float) -> None:
        """Count a fast step and what watching it cost: the time since `start_s`, plus `hooks_s` in the hooks.

        These are wall-clock times, since reading the CPU clock takes longer.
        """
        self._steps += 1
        self._watching_fast_s += time.perf_counter() - start_s + hooks_s

    def report(self) -> None:
        """Report to the sampler how long the steps since the last report took. Call this between two steps."""
        if not self._steps:
            return
        busy_s, elapsed_s = self._elapsed()
        # Wall-clock time includes time in which other processes ran: scale it to CPU time.
        self._sampler.hooked(self._watching_s + self._watching_fast_s * min(1.0, busy_s / elapsed_s))
        self._watching_s = self._watching_fast_s = 0.0
        self._sampler.stepped(busy_s, steps=self._steps)
        self._steps = 0

    def restart(self) -> None:
        """Start timing from here: something other than training steps took the time since the last report."""
        self._elapsed()
        self._steps = 0
        self._sampler.paused()

    def _elapsed(self) -> tuple[float, float]:
        """CPU seconds of this thread and wall-clock seconds since the last call."""
        (busy_s, wall_s), self._last_s = self._last_s, (time.thread_time(), time.perf_counter())
        return self._last_s[0] - busy_s, self._last_s[1] - wall_s
