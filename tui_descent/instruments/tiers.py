"""What a reading includes, and how far apart readings of one kind are."""

from __future__ import annotations

import math
from typing import NamedTuple

# A running mean is over about this many of the newest costs. The first is replaced by the second: caches were cold.
NEWEST = 8
# The curvature: at most this often and this share of the budget. While the run is paced: at most this often and this
# share of the time.
CURVATURE_EVERY_S, CURVATURE_SHARE = 10.0, 0.2
CURVATURE_PACED_EVERY_S, CURVATURE_PACED_SHARE = 0.5, 0.1


class Tiers(NamedTuple):
    """What a reading includes besides norms.

    `signals`: boundary signals and cosines; `slow`: activations and the chain-rule ledger; `rare`: the same batch
    again. `in_wait`: the run waits or pauses after this step, so the reading is not charged to the budget.
    """

    signals: bool = False
    slow: bool = False
    rare: bool = False
    in_wait: bool = False


class Interval:
    """The time between readings of one kind: at least `every_s`, and so long that they take `share` of the time."""

    def __init__(self, every_s: float, share: float) -> None:
        self.every_s, self.share = every_s, share
        self.cost_s = 0.0  # running mean; 0 while unknown
        self.last_s = -math.inf
        self._unpaid_s = 0.0  # cost of the last reading
        self._count = 0

    @property
    def next_s(self) -> float:
        """When the next reading can be paid for."""
        paid_s = self._unpaid_s / self.share if self.share > 0 else math.inf
        return self.last_s + max(self.every_s, paid_s)

    def begin(self, now_s: float) -> None:
        """A reading is planned. One that comes a little late does not delay the ones after it."""
        late_s = now_s - self.next_s
        self.last_s = self.next_s if 0 <= late_s < self.every_s else now_s
        self._unpaid_s = self.cost_s

    def took(self, cost_s: float, *, paid: bool) -> None:
        """The reading is done. Unless `paid` from the budget it does not delay the next one."""
        self._unpaid_s = cost_s if paid else 0.0
        self._count += 1
        self.cost_s += (cost_s - self.cost_s) / max(1, min(self._count - 1, NEWEST))

    @property
    def used_share(self) -> float:
        """The share of the time that readings of this kind take at most."""
        return min(self.cost_s / self.every_s, self.share)


class CurvatureSchedule:
    """When the curvature may be read. Its share of the budget is reserved while it is `wanted`."""

    def __init__(self, budget: float) -> None:
        self.wanted = False
        self.took_s = 0.0  # whole time spent on it
        self._interval = Interval(CURVATURE_EVERY_S, CURVATURE_SHARE * budget)

    def want(self, on: bool) -> None:
        """Start or stop reading it."""
        self.wanted = on

    def due(self, now_s: float, *, paced: bool) -> bool:
        """Whether to read it now: in the waits of a paced run, otherwise from its share of the budget."""
        if not self._interval.share:
            return False
        if paced:
            since_s = now_s - self._interval.last_s
            return since_s >= CURVATURE_PACED_EVERY_S and self._interval.cost_s <= CURVATURE_PACED_SHARE * since_s
        return now_s >= self._interval.next_s

    def took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """It was read between two steps; not `paid` from the budget when it was read in a wait."""
        self._interval.begin(now_s)
        self._interval.took(cost_s, paid=paid)
        self.took_s += cost_s

    @property
    def used_share(self) -> float:
        """The share of the time that is reserved for it."""
        return self._interval.share if self.wanted else 0.0
