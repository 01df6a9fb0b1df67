"""When to take a reading: within a share of the run's time, or on exactly the steps that were asked for."""

from __future__ import annotations

from collections.abc import Iterable

# A gap between two steps (an evaluation, a checkpoint, a suspended machine) is no step's time: no more than this many
# usual steps of it count.
LONGEST_STEP = 4.0
# While paced, a reading may take this part of what a step waits, or this part of the time since the last.
SLACK_USED = 0.5
PACED_SHARE = 0.1
# The slower tier (activations, the ledger) is read this often, or with every reading where the steps are fixed.
SLOW_EVERY_S = 1.0
# Of the newest figure in the running means of a step's and a reading's time.
NEWEST = 1 / 16


class Sampler:
    """`every` fixes the steps; otherwise readings take at most `budget` of the busy time. `at` are steps besides.

    Times are the training thread's CPU seconds, which other processes do not lengthen.
    """

    def __init__(self, *, every: int | None = None, budget: float = 0.01, at: Iterable[int] = ()) -> None:
        self._every = every
        self._budget = budget
        self._at = frozenset(at)
        self._spent_s = 0.0
        self._busy_s = 0.0
        self._cost_s = 0.0
        self._step_s = 0.0
        self._since_reading_s = 0.0

    def due(self, step: int, *, period_s: float | None) -> bool:
        """Whether update `step` is to be measured; `period_s` is the time a paced step has."""
        if step in self._at:
            return True
        if self._every is not None:
            return self._every > 0 and step % self._every == 0
        if self._budget <= 0:
            return False
        if period_s is not None:
            self._since_reading_s += period_s
            if (
                self._cost_s <= SLACK_USED * (period_s - self._step_s)
                or self._cost_s <= PACED_SHARE * self._since_reading_s
            ):
                self._since_reading_s = 0.0
                return True
        # The next one is paid for beforehand, so that the share holds at every moment but the first.
        return self._spent_s + self._cost_s <= self._budget * self._busy_s or self._cost_s == 0.0

    def slow_due(self, since_s: float) -> bool:
        """Whether a reading that is due takes the slower tier along, `since_s` after the last that did."""
        return self._every is not None or since_s >= SLOW_EVERY_S

    def stepped(self, busy_s: float) -> None:
        """A step took this long, readings included, waits not."""
        usual_s = self._step_s or busy_s
        busy_s = min(busy_s, LONGEST_STEP * usual_s)
        self._busy_s += busy_s
        self._step_s = usual_s + (busy_s - usual_s) * NEWEST

    def spent(self, cost_s: float) -> None:
        """A reading took this long."""
        self._spent_s += cost_s
        self._cost_s = max(cost_s, self._cost_s + (cost_s - self._cost_s) * NEWEST) if self._cost_s else cost_s

    @property
    def cost(self) -> float:
        """The readings' share of the busy time so far."""
        return self._spent_s / self._busy_s if self._busy_s else 0.0
