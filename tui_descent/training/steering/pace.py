"""The pace of a run, and whether it runs, pauses or ends."""

from __future__ import annotations

import math
import time

MAX_STEPS_AT_ONCE = 10_000_000


class PaceTimer:
    """Spaces updates evenly, at a given number of steps per second."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def wait_s(self, pace: float | None) -> float:
        """Seconds to wait before the next update. 0 if it is due now, or if there is no pace."""
        if pace is None:
            self._due_s = 0.0
            return 0.0
        now_s, period_s = time.monotonic(), 1 / pace
        # After a pause or a change of pace the timer restarts. If a step is late by less than a period, the following
        # steps are not delayed.
        if not now_s - period_s < self._due_s <= now_s + period_s:
            self._due_s = now_s
        if self._due_s > now_s:
            return self._due_s - now_s
        self._due_s += period_s
        return 0.0


class RunMode:
    """Whether a run is paused, makes a given number of steps, runs without limit, or has to end.

    `goal` is the planned number of updates. When it is reached, the training loop waits for commands.
    """

    def __init__(self) -> None:
        self.paused = False
        self.steps_left: int | None = None  # the steps until the run pauses; None if it runs without limit
        self.goal = math.inf  # number of updates
        self.continue_past_goal = False  # whether `resume` was called after the goal was reached
        self.stop_reason: str | None = None  # why the run has to end; None if it continues

    def pause(self) -> None:
        """Pause until `resume`."""
        self.paused, self.steps_left = True, None

    def resume(self, step: int, steps: int | None = None) -> None:
        """Continue from `step`. With `steps`, pause after this number of steps.

        Raises `ValueError` if `steps` is out of range.
        """
        if steps is not None and not 1 <= steps <= MAX_STEPS_AT_ONCE:
            raise ValueError(f"steps = {steps}; allowed: 1 to {MAX_STEPS_AT_ONCE:,}")
        self.paused, self.steps_left, self.continue_past_goal = False, steps, step == self.goal

    def count_update(self, step: int) -> None:
        """Count an update that was made; `step` is the number of the next update."""
        if self.steps_left is not None:
            self.steps_left -= 1
            self.paused = self.steps_left <= 0 and step != self.goal

    def pauses_after(self, step: int, *, ahead: int = 0) -> bool:
        """Whether the run pauses after update `step`. `ahead` is the number of updates to make before it."""
        return step + 1 == self.goal if self.steps_left is None else self.steps_left == 1 + ahead
