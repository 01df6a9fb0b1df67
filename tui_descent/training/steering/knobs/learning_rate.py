"""The learning-rate knob."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.training.steering.knobs.context import KnobChange, KnobContext


class RateKnob:
    """Sets the rate of the next step; a schedule goes on below it, multiplied."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The learning rate of the next step."""
        return f"{self._context.rate.value:.6g}"

    def unavailable(self) -> str | None:
        """Every optimizer has a rate."""
        return None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the rate, to a number or relative to now."""
        old = self.value()
        self._context.rate.turn(turn.value)
        return KnobChange(old=old, new=self.value())
