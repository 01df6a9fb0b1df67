"""What becomes of a step's numbers: told at once where they are at hand, otherwise as `training/late.py` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from tui_descent.instruments.deferred import Deferred
from tui_descent.training.guard import Fault, Guard
from tui_descent.training.records import Place


class Telling(Protocol):
    """Of one run, in the steps' order. `told(place, loss, skipped)` is what is done with a step's loss once known."""

    @property
    def joined(self) -> bool:
        """Whether losses wait for an update to join."""

    @property
    def sampled(self) -> bool:
        """Whether the update just made was measured."""

    def hand(self, loss: Tensor | float) -> bool:
        """The loss of the step under way, before its update; False where the batch is to be dropped."""

    def look(self, optimizer: torch.optim.Optimizer) -> bool:
        """In the pre-hook: see to a bad gradient. False where it must be looked at right now."""

    def let_go(self) -> None:
        """After the update."""

    def read(self, reading: Deferred[Any], tell: Callable[[Any], None]) -> None:
        """Of the update just made: to be told behind its step."""

    def joins(self, loss: Tensor | float, now_s: float) -> None:
        """A loss without an update: the next update's is the mean with it."""

    def step(self, loss: Tensor | float, now_s: float, *, made: bool, place: Place | None) -> None:
        """A step's end; without a `place` it is not told, since its update was dropped."""

    def log(self, value: Tensor | float, tell: Callable[[float], None]) -> None:
        """A number of the user's own."""

    def collect(self) -> None:
        """Tell what is known by now, and face what is no number."""

    def settle(self) -> None:
        """Tell everything: whatever is done next has its place behind these steps."""

    def at_end(self, error: BaseException | None) -> BaseException | None:
        """Tell all that is left; what ended the run, which may be a fault that only now is known."""


class AtOnce:
    """Numbers are at hand: a step is told as it ends, its reading right behind it."""

    def __init__(
        self,
        guard: Guard,
        *,
        told: Callable[[Place, float, bool], None],
        fault: Callable[[Fault], bool],
        next_step: Callable[[], int],
    ) -> None:
        self._guard, self._told, self._fault, self._next_step = guard, told, fault, next_step
        self._handed: tuple[Tensor | float, float, int] | None = None  # with its value, before which update
        self._joined: list[float] = []
        self._reading: Callable[[], None] | None = None
        self._bad: float | None = None  # the loss of the step just told

    @property
    def joined(self) -> bool:
        """Whether losses wait for an update to join."""
        return bool(self._joined)

    @property
    def sampled(self) -> bool:
        """Whether the update just made was measured."""
        return self._reading is not None

    def hand(self, loss: Tensor | float) -> bool:
        """The loss of the step under way, before its update; False where the batch is to be dropped."""
        value, step = number(loss), self._next_step()
        self._handed = loss, value, step
        return math.isfinite(value) or not self._fault(self._guard.bad_loss(step, value))

    def look(self, optimizer: torch.optim.Optimizer) -> bool:
        """False: a gradient is looked at by whoever asks."""
        return False

    def let_go(self) -> None:
        """Nothing is held on to."""

    def read(self, reading: Deferred[Any], tell: Callable[[Any], None]) -> None:
        """Of the update just made: to be told behind its step."""
        self._reading = partial(tell, reading.now())

    def joins(self, loss: Tensor | float, now_s: float) -> None:
        """A loss without an update: the next update's is the mean with it."""
        self._joined.append(self._value(loss))

    def step(self, loss: Tensor | float, now_s: float, *, made: bool, place: Place | None) -> None:
        """A step's end; without a `place` it is not told, since its update was dropped."""
        value = self._value(loss)
        if self._joined:
            value = mean([*self._joined, value])
            self._joined.clear()
        reading, self._reading = self._reading, None
        if place is None:
            return
        self._told(place, value, not made)
        if reading is not None:
            reading()
        if made and not math.isfinite(value):
            self._bad = value

    def log(self, value: Tensor | float, tell: Callable[[float], None]) -> None:
        """A number of the user's own."""
        tell(number(value))

    def collect(self) -> None:
        """A gradient that was finite beside a loss that is not: only now to be seen."""
        if self._bad is not None:
            value, self._bad = self._bad, None
            self._fault(self._guard.bad_loss(self._next_step() - 1, value, after=True))

    def settle(self) -> None:
        """All is told."""
        self.collect()

    def at_end(self, error: BaseException | None) -> BaseException | None:
        """Nothing is left to be told."""
        return error

    def _value(self, loss: Tensor | float) -> float:
        handed, self._handed = self._handed, None
        # The tensor of an earlier step may be written into again and again.
        same = handed is not None and handed[0] is loss and handed[2] == self._next_step()
        return handed[1] if handed is not None and same else number(loss)


def number(value: Tensor | float) -> float:
    """A scalar's value; from a GPU this waits for it."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def mean(losses: Sequence[float]) -> float:
    """Also of what is no number, or together too large for one: that is no reason to raise in the midst of a step."""
    try:
        return math.fsum(losses) / len(losses)
    except (OverflowError, ValueError):
        return sum(losses) / len(losses)
