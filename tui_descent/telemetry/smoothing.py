"""The smoothed loss, defined here and nowhere else: a moving average that does not drag a jump of decades along.

m ← m + (loss − m)/n, n being 20 steps, and a tenth of a younger run. Five losses in a row that all lie ten times over
or all ten times under what m was before them are no noise of batches: m begins anew as their mean, with n = 5, and n
grows on as in a young run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

OVER = 20.0
YOUNG = 10  # steps after which one more is averaged over
JUMP = 10.0
CONFIRMED = 5


@dataclass(slots=True)
class Smoothed:
    """The average, the step at which its length was 1, and a jump not yet confirmed: m before it, the losses since."""

    value: float = math.nan
    born: int = 0
    jump: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, over: float = OVER) -> float:
        """Take in a finite loss, and tell the average of about `over` steps behind it."""
        length = min(over, 1 + (step - self.born) / YOUNG)
        if math.isnan(self.value) or length <= 1:
            self.value = loss
        elif self._jumped(loss):
            self.value = math.fsum(self.jump[1:]) / CONFIRMED
            self.born, self.jump = step - YOUNG * (CONFIRMED - 1), []
        else:
            self.value += (loss - self.value) / length
        return self.value

    def back(self, step: int, value: float) -> None:
        """Stand before update `step` again, where the average was `value`."""
        if step < self.born + YOUNG * (CONFIRMED - 1):
            self.born = 0
        self.value, self.jump = value, []

    def _jumped(self, loss: float) -> bool:
        """Whether this loss is the one that confirms a jump."""
        if self.jump and _side(loss, self.jump[0]) != _side(self.jump[1], self.jump[0]):
            self.jump = []
        if self.jump or _side(loss, self.value):
            self.jump = [*(self.jump or [self.value]), loss]
        return len(self.jump) > CONFIRMED


def _side(loss: float, level: float) -> int:
    """1 well over it, -1 well under it, 0 near it or where a factor means nothing."""
    return (loss > JUMP * level > 0) - (0 <= JUMP * loss < level)
