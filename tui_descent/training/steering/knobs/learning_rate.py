"""The learning-rate knob."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.training.steering.knobs.context import KnobChange, KnobContext


class RateKnob:
    """The learning rate, set by a multiplier that stays in force on top of any schedule."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The learning rate of the next step."""
        return f"{self._context.rate.value:.6g}"

    def unavailable(self) -> str | None:
        """Always available."""
        return None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the rate, absolute or relative to the current one."""
        old = self.value()
        self._context.rate.turn(turn.value)
        return KnobChange(old=old, new=self.value())
