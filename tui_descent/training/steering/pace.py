"""The pace of a run, and whether it runs, pauses or ends."""

from __future__ import annotations

import math
import time

MAX_STEPS_AT_ONCE = 10_000_000


class PaceTimer:
    """Spaces updates evenly at a given number of steps per second."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def wait_s(self, pace: float | None) -> float:
        """Seconds to wait before the next update; 0 if it is due now, as always without a pace."""
        if pace is None:
            self._due_s = 0.0
            return 0.0
        now_s, period_s = time.monotonic(), 1 / pace
        # After a pause or a change of pace the timer restarts. A step that is late by less than a period does not shift
        # the steps after it.
        if not now_s - period_s < self._due_s <= now_s + period_s:
            self._due_s = now_s
        if self._due_s > now_s:
            return self._due_s - now_s
        self._due_s += period_s
        return 0.0


class RunMode:
    """Whether a run is paused, makes a given number of steps, runs on, or is to end.

    At `goal`, the planned number of updates, the training loop itself waits.
    """

    def __init__(self) -> None:
        self.paused = False
        self.steps_left: int | None = None  # until it pauses; None if it runs on
        self.goal = math.inf  # updates
        self.continue_past_goal = False  # asked for when the goal was reached
        self.stop_reason: str | None = None  # why the run is to end

    def pause(self) -> None:
        """Pause until `resume`."""
        self.paused, self.steps_left = True, None

    def resume(self, step: int, steps: int | None = None) -> None:
        """Run on from `step`, or make `steps` steps and pause. Raises `ValueError` for a number out of range."""
        if steps is not None and not 1 <= steps <= MAX_STEPS_AT_ONCE:
            raise ValueError(f"steps = {steps}; allowed: 1 to {MAX_STEPS_AT_ONCE:,}")
        self.paused, self.steps_left, self.continue_past_goal = False, steps, step == self.goal

    def count_update(self, step: int) -> None:
        """An update was made; `step` is the number of the next one."""
        if self.steps_left is not None:
            self.steps_left -= 1
            self.paused = self.steps_left <= 0 and step != self.goal

    def pauses_after(self, step: int, *, ahead: int = 0) -> bool:
        """Whether the run pauses after update `step`, which is `ahead` updates after the next one."""
        return step + 1 == self.goal if self.steps_left is None else self.steps_left == 1 + ahead
