"""How far a loop may go without being asked anything, and what its steps and their watching take of the time."""

from __future__ import annotations

import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.control import Control
from tui_descent.training.lane import Lane
from tui_descent.training.updates import Updates


class Stretch:
    """Of one run: the sampler's clock, in CPU seconds of the training thread."""

    def __init__(self, control: Control, updates: Updates, sampler: Sampler, lane: Lane) -> None:
        self._control, self._updates, self._sampler, self._lane = control, updates, sampler, lane
        self._last = time.thread_time(), time.perf_counter()
        self._steps = 0  # since the last look at the clock
        self._own_s = 0.0  # what watching took of them

    def unasked(self) -> int:
        """Of how many steps from here nothing is asked but their record, unless the keeper raises its flag."""
        control = self._control
        if self._updates.asks or not control.idle or control.steering.clips:
            return 0
        planned = min(control.steps_to_plan, self._sampler.steps_to_reading(control.step) - 1)
        return int(max(1, min(self._sampler.next_look, planned))) if planned >= 1 else 0

    def went(self, steps: int) -> None:
        """So many steps more."""
        self._steps += steps

    def look(self) -> None:
        """Between two steps: how long the steps since the last look took."""
        self._steps += self._lane.gone()
        if self._steps:
            busy_s, elapsed_s = self._since()
            # The lane reads the wall clock, which is cheaper than the CPU clock but includes interruptions.
            self._sampler.hooked(self._own_s + self._lane.own_s * min(1.0, busy_s / elapsed_s))
            self._own_s = self._lane.own_s = 0.0
            self._sampler.stepped(busy_s, steps=self._steps)
            self._steps = 0

    def count_own(self, busy_s: float) -> None:
        """What watching took since the CPU clock said `busy_s`, without a reading."""
        if not self._control.stood and self._control.steering.pace is None:
            self._own_s += time.thread_time() - busy_s

    def forget(self) -> None:
        """Something else than steps took time: it counts from here."""
        self._lane.gone()
        self._since()
        self._steps = 0
        self._sampler.stood()

    def _since(self) -> tuple[float, float]:
        """CPU seconds of this thread and seconds since the last call."""
        (busy_s, wall_s), self._last = self._last, (time.thread_time(), time.perf_counter())
        return self._last[0] - busy_s, self._last[1] - wall_s
