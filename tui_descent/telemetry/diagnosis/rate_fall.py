"""Notices that a scheduler takes the learning rate to almost nothing within a few steps, as it happens."""

from __future__ import annotations

import math

FALLEN_TO, WITHIN = 1.001e-3, 200  # of the largest rate, with room for rounding, in so many steps
# A cosine or a line falls that far only at its very end. A geometric fall spends half of its steps below LOW, so below
# a third of the steps it is none.
LOW, LOW_SHARE = 1 / 30, 1 / 3
HIGH = 0.9  # the fall begins where the rate was last above this share of the largest
BACK = 1e-2  # a rate above this share is a warm restart


class RateFall:
    """Follows the rates of the steps since the run's start or the last intervention.

    `fall` is the rate at which a fall was noticed, and in how many steps it came there; None without one.
    """

    def __init__(self) -> None:
        self.fall: tuple[float, int] | None = None
        self._largest = 0.0
        self._falling = self._low = 0  # steps since the rate was high, and how many of them it was low

    def add(self, rate: float) -> None:
        """The rate of the next step. A rate of 0 is a fact about the wiring, and does not count."""
        if not math.isfinite(rate) or rate <= 0:
            return
        self._largest = max(rate, self._largest)
        if rate > BACK * self._largest:
            self.fall = None
        if rate >= HIGH * self._largest:
            self._falling = self._low = 0
            return
        self._falling += 1
        self._low += rate <= LOW * self._largest
        geometric = self._low >= LOW_SHARE * self._falling
        if self.fall is None and rate <= FALLEN_TO * self._largest and geometric and self._falling <= WITHIN:
            self.fall = rate, self._falling
