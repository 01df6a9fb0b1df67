"""When to take a reading: within a share of the run's time, or on exactly the steps that were asked for."""

from __future__ import annotations

from collections.abc import Iterable

# A gap between two steps (an evaluation, a checkpoint, a suspended machine) is no step's time: no more than this many
# usual steps of it count.
LONGEST_STEP = 4.0
# While paced, a reading may take this part of what a step waits.
SLACK_USED = 0.5


class Sampler:
    """`every` fixes the steps; otherwise readings take at most `budget` of the busy time. `at` are steps besides."""

    def __init__(self, *, every: int | None = None, budget: float = 0.01, at: Iterable[int] = ()) -> None:
        self._every = every
        self._budget = budget
        self._at = frozenset(at)
        self._spent_s = 0.0
        self._busy_s = 0.0
        self._last_cost_s = 0.0
        self._step_s = 0.0

    def due(self, step: int, *, period_s: float | None) -> bool:
        """Whether update `step` is to be measured; `period_s` is the time a paced step has."""
        if step in self._at:
            return True
        if self._every is not None:
            return self._every > 0 and step % self._every == 0
        if self._budget <= 0:
            return False
        if period_s is not None and self._last_cost_s <= SLACK_USED * (period_s - self._step_s):
            return True
        # The next one is paid for beforehand, so that the share holds at every moment but the first.
        return self._spent_s + self._last_cost_s <= self._budget * self._busy_s or self._last_cost_s == 0.0

    def stepped(self, busy_s: float) -> None:
        """A step took this long, readings included, waits not."""
        usual_s = self._step_s or busy_s
        busy_s = min(busy_s, LONGEST_STEP * usual_s)
        self._busy_s += busy_s
        self._step_s = usual_s + (busy_s - usual_s) / 16

    def spent(self, cost_s: float) -> None:
        """A reading took this long."""
        self._spent_s += cost_s
        self._last_cost_s = cost_s

    @property
    def cost(self) -> float:
        """The readings' share of the busy time so far."""
        return self._spent_s / self._busy_s if self._busy_s else 0.0
