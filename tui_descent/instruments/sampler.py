"""Decides when a reading is taken: exactly at the requested steps, or as often as a given share of the time allows.

Within a budget there are also a few readings at fixed steps after the start and after each intervention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tui_descent.instruments.tiers import (
    READINGS_IN_MEAN,
    CurvatureSchedule,
    Interval,
    ReadingsAfterChange,
    TaskSchedule,
    Tiers,
)

# With the default budget, readings are at least APART_S apart, because the screen cannot show more. With a larger
# budget they may be closer together, in proportion.
DEFAULT_BUDGET, APART_S = 0.01, 0.095
# For the tiers signals, slow and rare: the least time between two readings (s), and the largest share of the budget.
SLOWER_TIERS = ((0.1, 0.06), (1.0, 0.06), (10.0, 0.03))
# In a paced run a reading may take this fraction of the wait before the next step, or this fraction of the time since
# the last reading.
WAIT_USED, PACED_SHARE = 0.5, 0.1
# Elapsed time is checked after this time or this many steps at the latest, even if no reading is due.
LOOK_EVERY_S, LOOK_EVERY_STEPS = 0.2, 150
# The mean time of a step without a reading is a running mean over about STEPS_IN_MEAN steps. It is used once it covers
# TRUSTED_AFTER steps.
STEPS_IN_MEAN, TRUSTED_AFTER = 64, 8
# A measured time counts as at most this many times the mean, so an evaluation between two steps hardly changes the
# mean.
OUTLIER = 4.0
# After a reading, steps shorter than SHORT_STEP_S are slower for about SLOWER_AFTER steps, because the reading has
# evicted the training's data from the cache.
SHORT_STEP_S, SLOWER_AFTER = 5e-3, 3


class Sampler:
    """Plans readings: one at every `every`-th step, or as many as take the share `budget` of the time.

    `at` are the numbers of additional steps to read. Time is measured in CPU seconds of the training thread; in a paced
    run, a step takes at least its period. Call `due` once for each step that is not a fast step, one step ahead: a
    cosine needs the gradient of the previous step.
    """

    def __init__(self, *, every: int | None = None, budget: float = DEFAULT_BUDGET, at: Iterable[int] = ()) -> None:
        self._every, self._budget, self._at = every, budget, frozenset(at)
        self._norms = Interval(APART_S * min(1.0, DEFAULT_BUDGET / budget) if budget > 0 else math.inf, budget)
        self._slower = [Interval(every_s, share * budget) for every_s, share in SLOWER_TIERS]
        self.curvature, self.task, self.lens = CurvatureSchedule(budget), TaskSchedule(), TaskSchedule()
        self._after_change = ReadingsAfterChange()
        self._period_s = 0.0  # the period of the steps in a paced run, otherwise 0
        self._now_s = 0.0
        # A plain step is one without a reading. The running mean of its time, and the number of plain steps so far.
        self._step_s, self._plain_steps = 0.0, 0
        self._outside_s = 0.0  # running mean of the time that a reading costs outside its own measured time
        # Since the last `_evaluate`: CPU time, steps, and the own measured time and the tiers of each reading.
        self._recent_s, self._recent_steps = 0.0, 0
        self._read: list[tuple[float, Tiers]] = []
        self._planned = False
        # CPU seconds since the start, and the values they had when the pace was last turned on or off.
        self._steps_s = self._readings_s = self._hooks_s = 0.0
        self._watching_before_s = self._time_before_s = 0.0

    @property
    def fixed(self) -> bool:
        """Whether readings are taken at fixed steps."""
        return self._every is not None or bool(self._at)

    def restart(self, step: int) -> None:
        """Plan complete readings for the steps after update `step`: the run begins there, or was changed there."""
        if self._every is None and self._budget > 0:
            self._after_change.restart(step)

    def due(self, step: int, *, period_s: float | None, pauses: bool = False) -> Tiers | None:
        """Plan update `step`: the tiers to measure, or None for no reading.

        `period_s` is the time between two steps of a paced run, None if the run is not paced. `pauses` means that the
        run pauses after this update.
        """
        if (period_s is None) != (self._period_s == 0.0):
            self._watching_before_s, self._time_before_s = self._watching_s, self.time_s
        self._period_s = period_s or 0.0
        if self._every is not None:
            requested = step in self._at or (self._every > 0 and step % self._every == 0)
            tiers = Tiers(True, True, True) if requested else None
        elif self._budget <= 0:
            tiers = Tiers(signals=True, slow=True) if step in self._at else None
        else:
            tiers = self._within_budget(step, pauses=pauses)
        if tiers is not None:
            self._planned = True
            for interval in self._intervals(tiers):
                interval.begin(self._now_s)
        return tiers

    def _within_budget(self, step: int, *, pauses: bool) -> Tiers | None:
        self._after_change.plan(step, self._now_s, self._norms.cost_s + sum(tier.cost_s for tier in self._slower[:2]))
        complete = self._after_change.next(step) == step
        requested = complete or step in self._at
        # Norms get the part of the budget that the other readings do not use.
        self._norms.share = self._budget - sum(tier.used_share for tier in (*self._slower, self.curvature))
        wait_s = self.wait_s
        if wait_s:
            cost_s = self._norms.cost_s + self._slower[0].cost_s
            ready = cost_s <= max(WAIT_USED * wait_s, PACED_SHARE * (self._now_s - self._norms.last_s))
        else:
            ready = self._now_s >= self._norms.next_s
        if not (requested or pauses or ready):
            return None
        free = pauses or self._period_s > 0
        signals, slow, rare = (
            self._now_s >= (tier.last_s + tier.every_s if free else tier.next_s) for tier in self._slower
        )
        in_wait = pauses or (ready and wait_s > 0)
        return Tiers(signals or free or complete, slow or pauses or complete, rare, in_wait=in_wait, complete=complete)

    def steps_to_reading(self, step: int) -> float:
        """Number of updates from `step` to the next one with a fixed reading; infinite if there is none."""
        first = min((at for at in self._at if at >= step), default=math.inf)
        first = min(first, self._after_change.next(step))
        if self._every is not None and self._every > 0:
            first = min(first, -(-step // self._every) * self._every)
        return first - step

    @property
    def now_s(self) -> float:
        """CPU seconds of the steps so far; each step of a paced run counts at least its period."""
        return self._now_s

    @property
    def wait_s(self) -> float:
        """How long a paced run waits before a step; 0 without a pace."""
        return max(self._period_s - self._step_s, 0.0) if self._period_s else 0.0

    @property
    def next_look(self) -> int:
        """The number of steps that may pass before `stepped` is called again."""
        if not self._step_known:
            return 1
        if self._read:
            return SLOWER_AFTER
        look_s = LOOK_EVERY_S
        if self._every is None and self._budget > 0:
            look_s = min(look_s, self._norms.next_s - self._now_s)
        return max(1, min(LOOK_EVERY_STEPS, math.ceil(look_s / max(self._step_s, 1e-9))))

    def spent(self, own_s: float, tiers: Tiers = Tiers()) -> None:  # noqa: B008 - immutable
        """Record that the current step was read. `own_s` is the time that the reading itself measured."""
        self._planned = False
        self._read.append((own_s, tiers))

    def hooked(self, took_s: float) -> None:
        """Record that hooks, checks and records of steps without a reading took `took_s`."""
        if self._step_known:  # the cost of starting up, which occurs only once, is not counted
            self._hooks_s += took_s

    def stepped(self, busy_s: float, *, steps: int = 1) -> None:
        """Record that `steps` steps took `busy_s` of CPU time in total, readings included."""
        self._steps_s += busy_s
        self._now_s += max(busy_s, steps * self._period_s)
        self._recent_s += busy_s
        self._recent_steps += steps
        # The step before a reading has to copy its gradient. This is part of the reading's cost.
        before = self._planned and not self._read and self._recent_steps == 1
        slower = len(self._read) == 1 and self._recent_steps <= 2 and self._step_s < SHORT_STEP_S
        if not before and not (slower and self._step_known):
            self._evaluate()

    def paused(self) -> None:
        """Ignore the time since the last call of `stepped`."""
        self._evaluate(complete=False)

    def _evaluate(self, *, complete: bool = True) -> None:
        """Update the mean time of a step without a reading, or the cost of the readings of the last few steps.

        `complete` is False if other work than training has interrupted these steps.
        """
        plain_s = max(self._recent_s - sum(own_s for own_s, _ in self._read), 0.0)
        steps, self._recent_s, self._recent_steps = self._recent_steps, 0.0, 0
        if complete and not (self._read and self._step_known):
            each_s = min(plain_s / steps, OUTLIER * self._step_s if self._plain_steps else math.inf)
            self._plain_steps += steps
            self._step_s += (each_s - self._step_s) * min(1.0, steps / min(self._plain_steps, STEPS_IN_MEAN))
        elif complete and len(self._read) == 1:
            # The reading's own time does not include hooks inside the passes and cache misses after them.
            most_s = OUTLIER * self._read[0][0] + self._step_s
            longer_s = min(max(plain_s - steps * self._step_s, -self._step_s), most_s)
            self._outside_s += (longer_s - self._outside_s) / READINGS_IN_MEAN
        for own_s, tiers in self._read:
            self._charge(own_s + max(self._outside_s, 0.0), tiers)
        self._read.clear()

    def _charge(self, cost_s: float, tiers: Tiers) -> None:
        """Divide a reading's cost among its tiers. Each tier with a known mean cost is charged that cost. The rest is
        charged to the tiers of unknown cost, or to the slowest tier if all costs are known.
        """
        if self._period_s or not tiers.in_wait:  # otherwise the run pauses after the reading, so training loses no time
            self._readings_s += cost_s
        intervals = self._intervals(tiers)
        others = [interval for interval in intervals if not interval.cost_s] or intervals[-1:]
        known_s = sum(interval.cost_s for interval in intervals if interval not in others)
        for interval in intervals:
            if interval in others:
                part_s = max(cost_s - known_s, 0.0) / len(others)
            else:
                part_s = interval.cost_s * min(1.0, cost_s / known_s)
            interval.charge(part_s, paid=not tiers.in_wait)

    def _intervals(self, tiers: Tiers) -> list[Interval]:
        return [self._norms, *(tier for tier, read in zip(self._slower, tiers[:3], strict=True) if read)]

    @property
    def _step_known(self) -> bool:
        return self._plain_steps >= TRUSTED_AFTER

    @property
    def time_s(self) -> float:
        """CPU seconds of the run's steps so far, watching included."""
        return self._steps_s + self._apart_s

    @property
    def _watching_s(self) -> float:
        return self._readings_s + self._apart_s + self._hooks_s

    @property
    def _apart_s(self) -> float:
        """The time of what is measured between two steps."""
        return self.curvature.took_s + self.task.took_s + self.lens.took_s

    @property
    def cost(self) -> float:
        """The share of the CPU time that watching has taken since the pace was last turned on or off."""
        time_s = self.time_s - self._time_before_s
        return (self._watching_s - self._watching_before_s) / time_s if time_s else 0.0
