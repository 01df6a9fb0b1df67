"""What becomes of a run whose loss or gradient is no number: held, ended, or noted and gone on with."""

from __future__ import annotations

from typing import Literal

from tui_descent.protocol.events import NotFinite
from tui_descent.training.control import Control
from tui_descent.training.guard import Fault
from tui_descent.training.stop import StopRun

OnFault = Literal["hold", "end", "note"]
NOTED_EVERY = 1000


class Faults:
    """Of one run."""

    def __init__(self, control: Control, on_fault: OnFault) -> None:
        self.on_fault = on_fault
        self._control = control
        self._noted_at: int | None = None

    def face(self, fault: Fault) -> bool:
        """Tell it, then hold, end or go on; whether the update is to be dropped. Raises `StopRun`."""
        control = self._control
        control.settle()  # what was before it is told before it
        if self.on_fault == "note" and self._noted_at is not None and fault.step < self._noted_at + NOTED_EVERY:
            return False  # weights that went bad stay bad: told now and then, not with every step
        self._noted_at = fault.step
        control.tell(
            NotFinite(segment=control.segment, step=fault.step, what=fault.what, layer=fault.layer, text=fault.text)
        )
        if self.on_fault == "note":
            return False
        if self.on_fault == "end":
            raise StopRun("diverged", fault.text)
        control.hold(fault.text, broken=True)
        return True
