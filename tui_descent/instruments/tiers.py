"""What a reading includes, and how far apart readings of one kind are."""

from __future__ import annotations

import math
from typing import NamedTuple

# Costs are averaged over about this many readings. The second replaces the first, which met cold caches.
READINGS_IN_MEAN = 8
# The curvature: at most this often, within this share of the budget; in the waits of a paced run at most this often,
# within this share of the time.
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
    """The time between readings of one kind: at least `every_s`, and long enough that they take at most `share` of it.

    A reading is paid for afterwards: the next one is due once the share has earned what the last one cost.
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
        """A reading is taken at `now_s`. One that is a little late does not delay the ones after it."""
        late_s = now_s - self.next_s
        self.last_s = self.next_s if 0 <= late_s < self.every_s else now_s
        self._unpaid_s = self.cost_s  # until it is known

    def charge(self, cost_s: float, *, paid: bool) -> None:
        """The last reading cost `cost_s`, `paid` from the budget or else taken in a wait."""
        self._unpaid_s = cost_s if paid else 0.0
        self._readings += 1
        self.cost_s += (cost_s - self.cost_s) / max(1, min(self._readings - 1, READINGS_IN_MEAN))


class CurvatureSchedule(Interval):
    """When the curvature is read. Its share is reserved while it is `wanted`; `took_s` is what it took so far."""

    def __init__(self, budget: float) -> None:
        super().__init__(CURVATURE_EVERY_S, CURVATURE_SHARE * budget)
        self.wanted = False
        self.took_s = 0.0

    @property
    def used_share(self) -> float:
        """The share of the time that is reserved for it."""
        return self.share if self.wanted else 0.0

    def want(self, on: bool) -> None:
        """Reserve its share from now on, or no longer."""
        self.wanted = on

    def due(self, now_s: float, *, paced: bool) -> bool:
        """Whether to read it now, in the waits of a `paced` run or from its share of the budget."""
        if not self.share:
            return False
        if paced:
            since_s = now_s - self.last_s
            return since_s >= CURVATURE_PACED_EVERY_S and self.cost_s <= CURVATURE_PACED_SHARE * since_s
        return now_s >= self.next_s

    def took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """It was read between two steps, `paid` from the budget or else taken in a wait."""
        self.begin(now_s)
        self.charge(cost_s, paid=paid)
        self.took_s += cost_s
