"""The learning-rate knob."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.training.steering.knobs.context import Knob, KnobChange


class RateKnob(Knob):
    """The learning rate, set by a multiplier that stays in force on top of any schedule."""

    def value(self) -> str:
        """The learning rate of the next step."""
        return f"{self._context.rate.value:.6g}"

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the rate, absolute or relative to the current one."""
        old = self.value()
        self._context.rate.turn(turn.value)
        return KnobChange(old=old, new=self.value())
