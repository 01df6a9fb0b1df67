"""The smoothed loss, defined here and nowhere else: a moving average that does not drag along what ended at a jump.

m ← m + (loss − m)/n, n being 20 steps, and a tenth of a younger run. Five losses in a row that all lie far over or all
far under what m was before them are no noise of batches: m begins anew as their mean, with n = 5, and n grows on as in
a young run. Far is a factor of two at least, and 2½ times the usual |ln| of one loss over the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

OVER = 20.0
YOUNG = 10  # steps after which one more is averaged over
FAR, DEVIATIONS = math.log(2), 2.5
CONFIRMED = 5


@dataclass(slots=True)
class Smoothed:
    """m, the step at which n was 1, the usual |ln| from loss to loss, ln of the last one, and a jump not yet confirmed.

    The jump is m before it and the losses since.
    """

    value: float = math.nan
    born: int = 0
    deviation: float = 0.0
    last: float = math.nan
    jump: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, over: float = OVER) -> float:
        """Take in a finite loss, and tell the average of about `over` steps behind it."""
        value, last = self.value, self.last
        length = 1 + (step - self.born) / YOUNG
        length = over if length > over else length
        if value / 2 < loss < value * 2 and length > 1 and not self.jump:  # as a rule: nothing to look into
            self.value = value + (loss - value) / length
        elif math.isnan(value) or length <= 1:
            self.value = loss
        elif self._jumped(loss):
            self.value = math.fsum(loss / CONFIRMED for loss in self.jump[1:])  # whose sum may be too large
            self.born, self.jump = step - YOUNG * (CONFIRMED - 1), []
        else:
            self.value += (loss - value) / length
        if loss > 0:
            self.last = math.log(loss)
            if last == last:  # a number
                self.deviation += (abs(self.last - last) - self.deviation) / (length if length > OVER / 2 else OVER / 2)
        return self.value

    def back(self, step: int, value: float, loss: float) -> None:
        """Stand before update `step` again, behind `loss`, where the average was `value`."""
        if step < self.born + YOUNG * (CONFIRMED - 1):
            self.born = 0
        self.value, self.last, self.jump = value, math.log(loss) if loss > 0 else math.nan, []

    def send(self) -> tuple[float, ...]:
        """All of it, for a viewer."""
        return self.value, self.born, self.deviation, self.last, *self.jump

    @classmethod
    def receive(cls, sent: Sequence[float]) -> Smoothed:
        """What was sent."""
        value, born, deviation, last, *jump = sent
        return cls(value, int(born), deviation, last, jump)

    def _jumped(self, loss: float) -> bool:
        """Whether this loss is the one that confirms a jump."""
        if self.jump and self._side(loss, self.jump[0]) != (1 if self.jump[1] > self.jump[0] else -1):
            self.jump = []
        if self.jump or self._side(loss, self.value):
            self.jump = [*(self.jump or [self.value]), loss]
        return len(self.jump) > CONFIRMED

    def _side(self, loss: float, level: float) -> int:
        """1 far over it, -1 far under it, 0 near it or where a factor means nothing."""
        far, ratio = max(FAR, DEVIATIONS * self.deviation), _log_ratio(loss, level)
        return (ratio > far) - (ratio < -far)


def _log_ratio(loss: float, level: float) -> float:
    if level <= 0 or loss < 0:
        return 0.0
    return math.log(loss) - math.log(level) if loss > 0 else -math.inf
