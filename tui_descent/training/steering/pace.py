"""Whether the next update may come, and when, so that people can watch."""

from __future__ import annotations

import math
import time

MAX_STEPS_AT_ONCE = 10_000_000


class PaceTimer:
    """Spaces updates evenly, so many steps a second."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def wait_s(self, pace: float | None) -> float:
        """How long to wait before the next update; not at all without a pace. 0 means that it is made now."""
        if pace is None:
            self._due_s = 0.0
            return 0.0
        now_s, period_s = time.monotonic(), 1 / pace
        # After a pause or a change of pace the timer restarts; a step late by less than a period keeps the grid.
        if not now_s - period_s < self._due_s <= now_s + period_s:
            self._due_s = now_s
        if self._due_s > now_s:
            return self._due_s - now_s
        self._due_s += period_s
        return 0.0


class RunMode:
    """Whether a run is paused, makes so many steps more, goes on, or is to end. At its `goal` the loop itself waits."""

    def __init__(self) -> None:
        self.paused = False
        self.steps_left: int | None = None  # before it pauses
        self.goal = math.inf  # updates
        self.continue_past_goal = False  # asked to go on beyond the goal
        self.stop_reason: str | None = None  # asked to end the run

    def pause(self) -> None:
        """Until somebody asks to go on."""
        self.paused, self.steps_left = True, None

    def resume(self, step: int, steps: int | None = None) -> None:
        """Go on from `step`, or make so many steps and pause. Raises `ValueError`."""
        if steps is not None and not 1 <= steps <= MAX_STEPS_AT_ONCE:
            raise ValueError(f"steps = {steps}; allowed: 1 to {MAX_STEPS_AT_ONCE:,}")
        self.paused, self.steps_left, self.continue_past_goal = False, steps, step == self.goal

    def count_update(self, step: int) -> None:
        """An update was made; `step` is the next one's number."""
        if self.steps_left is not None:
            self.steps_left -= 1
            self.paused = self.steps_left <= 0 and step != self.goal

    def pauses_after(self, step: int, *, ahead: int = 0) -> bool:
        """Whether the run pauses after update `step`, which comes `ahead` updates after the next one."""
        return step + 1 == self.goal if self.steps_left is None else self.steps_left == 1 + ahead
