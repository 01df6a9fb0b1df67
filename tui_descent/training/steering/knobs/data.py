"""How many samples a batch has, and how fast steps are made."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import new_value
from tui_descent.training.setup.data.batches import Batches
from tui_descent.training.setup.data.text import Windows
from tui_descent.training.steering.knobs.context import KnobChange, KnobContext, not_in_user_loop


class BatchSizeKnob:
    """The next batch takes so many of the epoch's samples; those before stay taken."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """Samples a batch."""
        batches = self._batches()
        return "" if batches is None else str(batches.size)

    def unavailable(self) -> str | None:
        """An own loop draws its batches itself; a surface has none; a full batch has no size to choose."""
        if self._context.setup is None:
            return not_in_user_loop("draws its own batches")
        batches = self._batches()
        if batches is None:
            return "a surface has no data, so no batches"
        return f"every batch is all {batches.size} samples; that was chosen with full = true" if batches.full else None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """At most all samples there are."""
        batches, old = self._batches(), self.value()
        assert batches is not None
        size = int(new_value(turn.value, batches.size, knob="batch_size"))
        if size > batches.largest:
            raise ValueError(f"batch_size = {size}; allowed: at most {batches.largest}")
        batches.size = size
        return KnobChange(old=old, new=self.value())

    def _batches(self) -> Batches | Windows | None:
        return None if self._context.setup is None else self._context.setup.batches


class PaceKnob:
    """Steps a second."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """A number, or `max`."""
        return "max" if self._context.pace is None else f"{self._context.pace:g}"

    def unavailable(self) -> str | None:
        """Any loop can be slowed down."""
        return None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """At once."""
        old = self.value()
        self._context.pace = None if turn.value == "max" else float(turn.value)
        return KnobChange(old=old, new=self.value())
