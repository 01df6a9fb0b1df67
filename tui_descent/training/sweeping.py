"""A range test in a run that obeys: for whom it is made, how far it is, and what ends it before its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tui_descent.protocol.commands import CancelSweep, Mark, Order, SweepRates, TurnKnob, WatchCurvature
from tui_descent.training.orders import Batch
from tui_descent.training.ratesweep import RangeTest

if TYPE_CHECKING:
    from tui_descent.training.control import Control

TOLD_EVERY_S = 0.1
# They touch nothing that the test uses.
AT_ONCE = (Mark, WatchCurvature)


class Sweeping:
    """One run's range tests. While one is made, orders are looked for before each of its updates."""

    def __init__(self, control: Control, test: RangeTest) -> None:
        self._control, self._test = control, test
        self._clients: set[int] = set()
        self._joined: list[Order] = []
        self._tell_s = 0.0

    def run(self, client: int) -> str:
        """Make one and tell of it; in a word what came of it. Raises `ValueError` where it was not made to its end."""
        control, told = self._control, self._control.told
        self._clients, self._joined, self._tell_s = {client}, [], 0.0
        try:
            found = self._test.run(control.segment, control.step, self._look)
        except ValueError as error:
            for order in self._joined:
                control.reject(order, str(error))
            raise
        finally:
            if told is not None:
                control.state(*told)
        control.tell(found)
        what = "range test: " + (found.words or f"{found.suggestion:.2g} suggested, f shows it")
        for order in self._joined:
            control.done(order, what)
        return what

    def _look(self, where: str) -> None:
        """Tell how far it is and see what was asked. Raises `ValueError` to give up."""
        control, now_s = self._control, time.monotonic()
        if control.stop_asked is not None:
            raise ValueError("the range test was given up: the run is to stop")
        if now_s >= self._tell_s:
            self._tell_s = now_s + TOLD_EVERY_S
            control.state("testing", where)
        for batch in control.ordered(now_s):
            self._hear(batch, f"at {where}; nothing was changed")

    def _hear(self, batch: Batch, where: str) -> None:
        order, command, control = batch.order, batch.order.command, self._control
        if isinstance(command, CancelSweep):
            self._clients.discard(order.client)
            control.done(order, "the range test is given up" if not self._clients else "others wait for it: it goes on")
            if not self._clients:
                raise ValueError(f"given up {where}")
        elif isinstance(command, SweepRates):
            self._clients.add(order.client)
            self._joined.append(order)
        elif isinstance(command, AT_ONCE):
            control.carry_out(batch)
        else:
            control.put_off(batch)
            word = command.knob if isinstance(command, TurnKnob) else type(command).__name__.lower()
            raise ValueError(f"it made way for {word[:60]} {where}")
