"""What a run on a GPU knows only later: its losses, whether they were numbers, its readings. Nobody waits for them.

They are told in the steps' order, each step with its own number, rate and time, once they have come; whoever is about
to intervene, to stand still or to end lets them all come first (`settle`, which synchronises).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from tui_descent.instruments.deferred import Arrival, Deferred, far
from tui_descent.training.guard import Fault, Guard
from tui_descent.training.records import Place
from tui_descent.training.stop import StopRun
from tui_descent.training.telling import mean
from tui_descent.training.verdict import Row, Verdicts, begins_momentum, stoppable

# Steps and readings that wait to be told, at most; beyond, the oldest is waited for.
MOST_WAITING = 1000
T = TypeVar("T")


class _Step(NamedTuple):
    place: Place | None  # None for what is no step
    rows: int  # the mean of so many losses is its own
    made: bool
    stopped: bool  # whether a bad row made it a no-op on the device
    handed: bool  # whether its loss was among what was looked at before it


@dataclass(frozen=True, slots=True)
class _Reading:
    arrival: Arrival
    tell: Callable[[Sequence[float]], None]
    of_update: bool  # and not told where none was made


class _Found(NamedTuple):
    step: int
    loss: float | None  # where that is what was bad
    stopped: bool


class Late:
    """Of one run, in order. `told(place, loss, skipped)` is what is done with a step whose loss has come.

    `fault` is handed what is no number, found at `next_step`; with `stops` the run is then held or ended, and updates
    of a fused optimizer are no-ops on the device from the bad one on until `fault` has returned. With `uncount` these
    are no steps: it is called with their number before `fault`, and none of them is told; else each is, as skipped.
    """

    def __init__(
        self,
        device: torch.device,
        guard: Guard,
        *,
        told: Callable[[Place, float, bool], None],
        fault: Callable[[Fault], object],
        next_step: Callable[[], int],
        stops: bool,
        uncount: Callable[[int], object] | None = None,
    ) -> None:
        self._set_off: Callable[[Sequence[torch.Tensor]], Arrival] = Arrival
        self._verdicts = Verdicts(device, self._set_off)
        self._guard = guard
        self._told = told
        self._fault = fault
        self._next_step = next_step
        self._stops = stops
        self._uncount = uncount
        self._held_back = 0  # updates that the device did not make, and that are to be uncounted
        self._waiting: deque[_Step | _Reading] = deque()
        self._rows: deque[Row] = deque()
        self._handed = False
        self._open_rows = 0  # rows written for the step under way
        self._stopped = False  # the update under way
        self._sample: _Reading | None = None
        self._skipped = False  # the last step that was told
        self._stopping = False  # from a bad row on, as the device does
        self._found: _Found | None = None
        self._facing = False

    @classmethod
    def of(cls, model: nn.Module, guard: Guard, **how: Any) -> Late | None:
        """Where the model's numbers come late; None where they are at hand."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return cls(device, guard, **how) if comes_late(device) else None

    @property
    def joined(self) -> bool:
        """Whether losses wait for an update to join."""
        return self._open_rows > 0

    # Before and around an update.

    def hand(self, loss: torch.Tensor | float) -> bool:
        """The loss of the step under way, before its update; whether it is good is known later."""
        self._handed = True
        self._verdicts.loss(loss)
        return True

    def look(self, optimizer: torch.optim.Optimizer) -> bool:
        """In the pre-hook: take hold of what tells a bad gradient. False where it must be looked at right now."""
        stops = self._stops and stoppable(optimizer)
        if stops and begins_momentum(optimizer):
            return False  # once a run: this one look synchronises
        self._verdicts.look(self._guard.input_most(), optimizer, stop=stops)
        self._stopped = stops
        return True

    def let_go(self) -> None:
        """After the update."""
        self._verdicts.let_go()

    def read(self, reading: Deferred[T], tell: Callable[[T], None]) -> None:
        """Of the update just made: to be told behind its step."""
        arrival = self._set_off(reading.columns)
        self._sample = _Reading(arrival, lambda values: tell(reading.read(values)), of_update=True)

    # After it.

    @property
    def sampled(self) -> bool:
        """Whether the update just made was measured."""
        return self._sample is not None

    def joins(self, loss: torch.Tensor | float, now_s: float) -> None:
        """A loss without an update: the next update's is the mean with it."""
        self._write(loss, now_s)

    def step(self, loss: torch.Tensor | float, now_s: float, *, made: bool, place: Place | None) -> None:
        """A step's end; without a `place` it is not told, since its update was dropped."""
        handed = self._write(loss, now_s)
        self._waiting.append(_Step(place, self._open_rows, made, self._stopped, handed))
        self._open_rows, self._stopped = 0, False
        if self._sample is not None:
            self._waiting.append(self._sample)
            self._sample = None

    def log(self, value: torch.Tensor | float, tell: Callable[[float], None]) -> None:
        """A number of the user's own."""
        if not isinstance(value, torch.Tensor):
            tell(float(value))
            return
        self._waiting.append(_Reading(self._set_off([value.detach().reshape(1)]), lambda v: tell(v[0]), False))

    def _write(self, loss: torch.Tensor | float, now_s: float) -> bool:
        """Whether it had been handed over before."""
        handed, self._handed = self._handed, False
        if not handed:
            self._verdicts.loss(loss)
        self._open_rows += 1
        self._verdicts.close_row(now_s)
        return handed

    # Telling.

    def collect(self) -> None:
        """Tell what has come, without waiting for the rest, if that is not too much."""
        if self._verdicts.under_way:
            self._rows.extend(self._verdicts.arrived())
        while self._waiting and self._is_here(self._waiting[0]):
            self._tell(self._waiting.popleft())
        while len(self._waiting) > MOST_WAITING:
            self._wait_for_oldest()
        self._face()

    def settle(self) -> None:
        """Tell everything, and wait for what has not come: whatever is done next has its place behind these steps."""
        if not self._facing:  # whoever is told of a fault finds everything told that is to be
            self._drain()
            self._face()

    def at_end(self, error: BaseException | None) -> BaseException | None:
        """Tell all that is left; what ended the run, which may be a fault that only now is known."""
        if error is not None:
            self._found = None
            with suppress(RuntimeError):  # a device that has failed has nothing to tell any more
                self._drain()
            self._put_back()
            return error
        try:
            self.settle()
        except (StopRun, RuntimeError) as found:
            return found
        return None

    def _drain(self) -> None:
        while self._waiting:
            self._wait_for_oldest()

    def _is_here(self, item: _Step | _Reading) -> bool:
        return len(self._rows) >= item.rows if isinstance(item, _Step) else item.arrival.here

    def _wait_for_oldest(self) -> None:
        """A sync point, as `Verdicts.arrived` and `Arrival.values` are where they wait."""
        item = self._waiting.popleft()
        if isinstance(item, _Step) and len(self._rows) < item.rows:
            self._verdicts.send()
            while len(self._rows) < item.rows:
                self._rows.extend(self._verdicts.arrived(wait=True))
        self._tell(item)

    def _tell(self, item: _Step | _Reading) -> None:
        if isinstance(item, _Reading):
            if not (item.of_update and self._skipped):
                item.tell(item.arrival.values())
            return
        rows = [self._rows.popleft() for _ in range(item.rows)]
        last, finite = rows[-1], math.isfinite
        loss = last.loss if len(rows) == 1 else mean([row.loss for row in rows])
        # A scaler's overflow is a skipped step and no fault, whatever the numbers.
        overflow = last.overflow > 0
        bad_grad = not overflow and not finite(last.gradient)
        if item.stopped and (bad_grad or (item.handed and not overflow and not finite(last.loss))):
            self._stopping = True
        held_back = item.stopped and self._stopping
        self._skipped = not item.made or overflow or held_back
        if item.place is None:
            return
        if held_back and self._uncount is not None:
            self._held_back += 1
        else:
            self._told(item.place, loss, self._skipped)
        bad_loss = item.made and not overflow and not finite(loss)
        if bad_grad or bad_loss:
            self._found = self._found or _Found(item.place.step, loss if bad_loss else None, held_back)
            if not self._stops:
                self._face()

    def _face(self) -> None:
        """Hand over the first step that was found bad."""
        if self._found is None:
            return
        if self._stops:
            self._drain()  # the run is to stand or to end: all before and behind is told first
        found, self._found = self._found, None
        since = self._next_step() - found.step - 1
        self._put_back()
        self._facing = True
        try:
            self._fault(self._guard.late(found.step, found.loss, since=since, stopped=found.stopped))
        finally:
            self._facing = False
            if self._stops:
                self._stopping = False
                self._verdicts.release()

    def _put_back(self) -> None:
        held_back, self._held_back = self._held_back, 0
        if held_back and self._uncount is not None:
            self._uncount(held_back)


def comes_late(device: torch.device) -> bool:
    """Whether a loop on it must never be made to wait for a number."""
    return far(device)
