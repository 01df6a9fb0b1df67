"""The smoothed loss: a moving average that restarts after a jump. Every smoothed training loss comes from here.

m ← m + (loss − m)/n with n = 1 + step/10, at most 20.

A jump is five losses in a row that are all far above, or all far below, the value of m before them. Then m restarts as
the mean of these five losses with n = 5, and n grows from there as at the start of a run. "Far" means that the ratio is
more than two, and more than e^(2½ d), where d is the running mean of |ln(loss / previous loss)|. This way, noise
between batches does not count as a jump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW = 20.0
STEPS_PER_N = 10  # at the start of a run, n grows by 1 in this many steps
FAR, DEVIATIONS = math.log(2), 2.5
JUMP_STEPS = 5


def window_of(scenario: Mapping[str, Any] | None) -> float:
    """The window for a run of this scenario; None for a user loop. Without batches the loss has no noise to smooth
    away, and an average would only lag behind the loss.
    """
    return 1.0 if scenario is not None and scenario.get("data") is None else WINDOW


@dataclass(slots=True)
class SmoothedLoss:
    """The average m, as `value`, and what its next value depends on."""

    value: float = math.nan
    start: int = 0  # the step at which n was 1
    deviation: float = 0.0  # running mean of |ln(loss / previous loss)|
    log_loss: float = math.nan  # ln of the last loss
    jump: list[float] = field(
        default_factory=list
    )  # m before a possible jump, then the losses since; empty if there is none

    def add(self, step: int, loss: float, window: float = WINDOW) -> float:
        """Add a finite loss; returns the average over about `window` steps."""
        value, previous = self.value, self.log_loss
        n = 1 + (step - self.start) / STEPS_PER_N
        n = window if n > window else n
        if value / 2 < loss < value * 2 and n > 1 and not self.jump:  # the common case, which cannot be a jump
            self.value = value + (loss - value) / n
        elif math.isnan(value) or n <= 1:
            self.value = loss
        elif self._jumped(loss):
            self.value = math.fsum(loss / JUMP_STEPS for loss in self.jump[1:])  # their sum could overflow
            self.start, self.jump = step - STEPS_PER_N * (JUMP_STEPS - 1), []
        else:
            self.value += (loss - value) / n
        if loss > 0:
            self.log_loss = math.log(loss)
            if previous == previous:  # not NaN
                self.deviation += (abs(self.log_loss - previous) - self.deviation) / (
                    n if n > WINDOW / 2 else WINDOW / 2
                )
        return self.value

    def rewind(self, step: int, value: float, loss: float) -> None:
        """Return to the state before update `step`, when the average was `value` and the last loss was `loss`."""
        if step < self.start + STEPS_PER_N * (JUMP_STEPS - 1):
            self.start = 0
        self.value, self.log_loss, self.jump = value, math.log(loss) if loss > 0 else math.nan, []

    def send(self) -> tuple[float, ...]:
        """The state, for a viewer."""
        return self.value, self.start, self.deviation, self.log_loss, *self.jump

    @classmethod
    def receive(cls, sent: Sequence[float]) -> SmoothedLoss:
        """The inverse of `send`."""
        value, start, deviation, log_loss, *jump = sent
        return cls(value, int(start), deviation, log_loss, jump)

    def _jumped(self, loss: float) -> bool:
        """Whether this loss confirms a jump."""
        if self.jump and self._side(loss, self.jump[0]) != (1 if self.jump[1] > self.jump[0] else -1):
            self.jump = []
        if self.jump or self._side(loss, self.value):
            self.jump = [*(self.jump or [self.value]), loss]
        return len(self.jump) > JUMP_STEPS

    def _side(self, loss: float, level: float) -> int:
        """1 if the loss is far above the level, -1 if far below, otherwise 0. Also 0 if the ratio of the two has no
        meaning.
        """
        far, ratio = max(FAR, DEVIATIONS * self.deviation), _log_ratio(loss, level)
        return (ratio > far) - (ratio < -far)


def _log_ratio(loss: float, level: float) -> float:
    if level <= 0 or loss < 0:
        return 0.0
    return math.log(loss) - math.log(level) if loss > 0 else -math.inf
