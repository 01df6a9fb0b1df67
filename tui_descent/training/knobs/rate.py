"""The learning rate's knob."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.training.knobs.ground import Ground, Turned


class RateKnob:
    """A multiplier on the schedule's rate."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def value(self) -> str:
        """The rate of the next step."""
        return f"{self._ground.rate.value:.6g}"

    def unavailable(self) -> str | None:
        """Every optimizer has a rate."""
        return None

    def turn(self, turn: TurnKnob) -> Turned:
        """Exactly, or relative to now."""
        old = self.value()
        self._ground.rate.turn(turn.value)
        return Turned(old=old, new=self.value())
