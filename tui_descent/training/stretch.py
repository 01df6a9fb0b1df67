"""How far a loop may go without being asked anything, and what its steps and their watching take of the time."""

from __future__ import annotations

import time

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.control import Control
from tui_descent.training.lane import Lane
from tui_descent.training.updates import Updates


class Stretch:
    """Of one run: the sampler's clock."""

    def __init__(self, control: Control, updates: Updates, sampler: Sampler, lane: Lane) -> None:
        self._control, self._updates, self._sampler, self._lane = control, updates, sampler, lane
        self._cpu_s = time.thread_time()
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
            now_s = time.thread_time()
            self._own_s += self._lane.own_s
            self._lane.own_s = 0.0
            if self._own_steps:
                self._sampler.hooked(self._own_s, self._own_steps)
                self._own_s, self._own_steps = 0.0, 0
            self._sampler.stepped(now_s - self._cpu_s, steps=self._steps)
            self._cpu_s, self._steps = now_s, 0

    def count_own(self, start_s: float, *, steps: int = 1) -> None:
        """What watching took of so many steps, or between two; what a reading takes has an account of its own."""
        if not self._control.stood and self._control.steering.pace is None:
            self._own_s += time.perf_counter() - start_s
            self._own_steps += steps

    def forget(self) -> None:
        """Something else than steps took time: it counts from here."""
        self._lane.gone()
        self._cpu_s, self._steps = time.thread_time(), 0
