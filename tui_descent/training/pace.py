"""Whether the next update may come, and when, so that people can watch."""

from __future__ import annotations

import math
import time

MAX_STEPS_AT_ONCE = 10_000_000


class Beat:
    """An even beat at so many steps a second."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def ahead_s(self, pace: float | None) -> float:
        """How long to wait before the next update; not at all without a pace. 0 means that it is made now."""
        if pace is None:
            self._due_s = 0.0
            return 0.0
        now_s, period_s = time.monotonic(), 1 / pace
        # After a pause, or when the pace was turned, the beat starts anew; a step late by less keeps it.
        if not now_s - period_s < self._due_s <= now_s + period_s:
            self._due_s = now_s
        if self._due_s > now_s:
            return self._due_s - now_s
        self._due_s += period_s
        return 0.0


class Going:
    """Whether a run goes on and on, for so many steps more, or not. At its `goal` it is the loop that stands."""

    def __init__(self) -> None:
        self.paused = False
        self.steps_left: int | None = None  # before it pauses
        self.goal = math.inf  # updates
        self.onward = False  # told to go on and on where it stands at its goal

    def stand(self) -> None:
        """Not until somebody says so."""
        self.paused, self.steps_left = True, None

    def go(self, step: int, steps: int | None = None) -> None:
        """On and on from `step`, or so many steps. Raises `ValueError`."""
        if steps is not None and not 1 <= steps <= MAX_STEPS_AT_ONCE:
            raise ValueError(f"steps = {steps}; allowed: 1 to {MAX_STEPS_AT_ONCE:,}")
        self.paused, self.steps_left, self.onward = False, steps, step == self.goal

    def made(self, step: int) -> None:
        """An update was made; `step` is the next one's number."""
        if self.steps_left is not None:
            self.steps_left -= 1
            self.paused = self.steps_left <= 0 and step != self.goal

    def stands_behind(self, step: int, *, ahead: int = 0) -> bool:
        """Whether no other update follows the one of number `step`, `ahead` updates behind the coming one, at once."""
        return step + 1 == self.goal if self.steps_left is None else self.steps_left == 1 + ahead
