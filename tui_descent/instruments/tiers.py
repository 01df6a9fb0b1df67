"""The tiers of a reading (what it measures), and the time between readings of one tier."""

from __future__ import annotations

import math
from typing import NamedTuple

# Costs are averaged over about this many readings. The second cost replaces the first one, which is too high because
# the caches were cold.
READINGS_IN_MEAN = 8
# When the complete readings come: this many steps after the start and after each intervention. Then: how many
# interventions in a row are followed by such readings, and the share of the time that they may take if there are more.
AFTER_CHANGE = (1, 2, 5, 10, 20, 35, 50)
MOST_CHANGES, CHANGES_SHARE = 3, 0.02
# The least time between two curvature readings, and their largest share of the budget. In a paced or paused run, the
# least time between two of them, and their largest share of that time.
CURVATURE_EVERY_S, CURVATURE_SHARE = 10.0, 0.2
CURVATURE_PACED_EVERY_S, CURVATURE_PACED_SHARE = 0.5, 0.1
# The least time between two pictures of the task, and their largest share of the time. In a paced run a picture may
# take this fraction of the wait before the next step.
TASK_EVERY_S, TASK_SHARE, TASK_WAIT_USED = 0.2, 0.04, 0.5


class Tiers(NamedTuple):
    """What a reading measures in addition to norms.

    `signals` are block boundaries and gradient cosines, `slow` are activations and the chain-rule ledger, and `rare`
    are the instruments that repeat the batch. `in_wait` means that the run waits or pauses after this step, so the
    reading is not charged to the budget.
    """

    signals: bool = False
    slow: bool = False
    rare: bool = False
    in_wait: bool = False
    complete: bool = False


class ReadingsAfterChange:
    """The steps of the complete readings that follow the start of the run and each intervention.

    They come 1, 2, 5, 10, 20, 35 and 50 steps after it, then 75, 113, 170 and so on: each time after 1.5 times as many
    steps. A diagnosis needs them, and their number grows only with the logarithm of the run's length. `MOST_CHANGES`
    interventions in a row are each followed by these readings. Further interventions are followed by such readings only
    as far as these take at most the share `CHANGES_SHARE` of the time. Otherwise a key that is held down would slow the
    run.
    """

    def __init__(self) -> None:
        self._start: int | None = None  # the step of the start or of the last intervention
        self._pending: int | None = None  # the step of an intervention whose readings are not planned yet
        # How many interventions may still have readings, and when that was counted.
        self._changes, self._counted_s = float(MOST_CHANGES), 0.0

    def restart(self, step: int) -> None:
        """Start again from update `step`, before which the run was changed."""
        self._pending = step

    def plan(self, step: int, now_s: float, cost_s: float) -> None:
        """Called before update `step`, at the time `now_s`. `cost_s` is the cost of one complete reading."""
        if self._pending is None:
            return
        elapsed_s, self._counted_s = now_s - self._counted_s, now_s
        all_s = cost_s * len(AFTER_CHANGE)
        self._changes = min(self._changes + CHANGES_SHARE * elapsed_s / max(all_s, 1e-9), MOST_CHANGES)
        if self._changes >= 1 or self._start is None or step < self._start:
            self._changes -= 1
            self._start, self._pending = self._pending if step <= self._pending + 1 else step, None

    def next(self, step: int) -> float:
        """The first of these steps that is not before `step`; infinite if there is none."""
        if self._start is None:
            return math.inf
        after, since = step - self._start, AFTER_CHANGE[-1]
        while since < after:
            since = math.ceil(since * 1.5)
        return self._start + next((offset for offset in AFTER_CHANGE if offset >= after), since)


class Interval:
    """The time between readings of one tier: at least `every_s`, and long enough that readings take at most `share` of
    the time.

    The next reading is due when `share` times the time since the last reading has reached the cost of the last one.
    """

    def __init__(self, every_s: float, share: float) -> None:
        self.every_s, self.share = every_s, share
        self.cost_s = 0.0  # running mean, 0 while unknown
        self.last_s = -math.inf
        self._unpaid_s = 0.0
        self._readings = 0

    @property
    def next_s(self) -> float:
        """When the next reading is due."""
        paid_after_s = self._unpaid_s / self.share if self.share > 0 else math.inf
        return self.last_s + max(self.every_s, paid_after_s)

    @property
    def used_share(self) -> float:
        """The share of the time that these readings take."""
        return min(self.cost_s / self.every_s, self.share)

    def begin(self, now_s: float) -> None:
        """Record a reading that is taken at `now_s`. One that is a little late does not delay the following ones."""
        late_s = now_s - self.next_s
        self.last_s = self.next_s if 0 <= late_s < self.every_s else now_s
        self._unpaid_s = self.cost_s  # an estimate, until `charge` gives the cost

    def charge(self, cost_s: float, *, paid: bool) -> None:
        """Record that the last reading cost `cost_s`. `paid` is False if it is not charged to the budget."""
        self._unpaid_s = cost_s if paid else 0.0
        self._readings += 1
        self.cost_s += (cost_s - self.cost_s) / max(1, min(self._readings - 1, READINGS_IN_MEAN))


class CurvatureSchedule(Interval):
    """Decides when the curvature is measured. Its share of the budget is reserved while it is `wanted`.

    `took_s` is the total CPU time of all curvature readings so far.
    """

    def __init__(self, budget: float) -> None:
        super().__init__(CURVATURE_EVERY_S, CURVATURE_SHARE * budget)
        self.wanted = False
        self.took_s = 0.0

    @property
    def used_share(self) -> float:
        """The share of the time that is reserved for curvature readings."""
        return self.share if self.wanted else 0.0

    def want(self, on: bool) -> None:
        """Reserve the share for curvature readings from now on, or stop reserving it."""
        self.wanted = on

    def due(self, now_s: float, *, paced: bool) -> bool:
        """Whether to measure the curvature now: within its share of the budget, or in the waits of a `paced` run."""
        if not self.share:
            return False
        if paced:
            since_s = now_s - self.last_s
            return since_s >= CURVATURE_PACED_EVERY_S and self.cost_s <= CURVATURE_PACED_SHARE * since_s
        return now_s >= self.next_s

    def took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """Record that the curvature was measured. `paid` is False if the time is not charged to the budget."""
        self.begin(now_s)
        self.charge(cost_s, paid=paid)
        self.took_s += cost_s


class TaskSchedule(Interval):
    """Decides when a picture of the task is made, or when the activation lens counts. Each has its own share of the
    time, outside the budget.

    Time is measured by `Sampler.now_s`, the training's own time, so the pictures' share is the same on a busy machine.
    `took_s` is the total CPU time of all pictures so far.
    """

    def __init__(self) -> None:
        super().__init__(TASK_EVERY_S, TASK_SHARE)
        self.took_s = 0.0

    def due(self, now_s: float, *, wait_s: float) -> bool:
        """Whether to make a picture now: within its share of the time, or in the `wait_s` before the next step."""
        in_wait = self.cost_s <= TASK_WAIT_USED * wait_s and now_s - self.last_s >= self.every_s
        return now_s >= self.next_s or in_wait

    def took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """Record that a picture was made. `paid` is False if the run is paused, because training then lost no time."""
        self.begin(now_s)
        self.charge(cost_s, paid=paid)
        self.took_s += cost_s
