"""The knobs for the batch size and the pace."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import new_value
from tui_descent.training.setup.data.batches import Batches
from tui_descent.training.setup.data.text import Windows
from tui_descent.training.steering.knobs.context import Knob, KnobChange, unavailable_in_user_loop


class BatchSizeKnob(Knob):
    """The batch size, changed from the next batch on. The order of the samples in the epoch stays the same."""

    def value(self) -> str:
        """Samples per batch."""
        batches = self._batches()
        return "" if batches is None else str(batches.size)

    def unavailable(self) -> str | None:
        """Not available in a user loop, on a surface or in full-batch training: there is no batch size to set."""
        if self._context.setup is None:
            return unavailable_in_user_loop("it draws its own batches")
        batches = self._batches()
        if batches is None:
            return (
                "a surface has no data, so no batches" if self._context.no_layers else "every step uses all of its data"
            )
        return f"every batch holds all {batches.size} samples (full = true)" if batches.full else None

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether the batches have this size."""
        batches = self._batches()
        return batches is not None and new_value(turn.value, batches.size, knob="batch_size") == batches.size

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the batch size. Raises `ValueError` if it is larger than the largest possible batch."""
        batches, old = self._batches(), self.value()
        assert batches is not None
        size = int(new_value(turn.value, batches.size, knob="batch_size"))
        if size > batches.largest:
            raise ValueError(f"batch_size = {size}; allowed: at most {batches.largest}")
        batches.size = size
        return KnobChange(old=old, new=self.value())

    def _batches(self) -> Batches | Windows | None:
        return None if self._context.setup is None else self._context.setup.batches


class PaceKnob(Knob):
    """The pace, in steps per second."""

    def value(self) -> str:
        """A number, or `max`."""
        return "max" if self._context.pace is None else f"{self._context.pace:g}"

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether this is the current pace."""
        return self._context.pace == (None if turn.value == "max" else float(turn.value))

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the pace at once."""
        old = self.value()
        self._context.pace = None if turn.value == "max" else float(turn.value)
        return KnobChange(old=old, new=self.value())
