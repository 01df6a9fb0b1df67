"""What becomes of a step's numbers: losses and readings are reported in step order, once they are on the host.

On a CPU that is at once. On CUDA they arrive later and are not waited for, except by `report(wait=True)`, which comes
before whatever must not overtake them: an intervention, a pause, the end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tui_descent.instruments.deferred import Arrival, Deferred
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.losses import DeviceLosses, HostLosses, begins_momentum, mean, number, stoppable
from tui_descent.training.watch.nan_guard import Fault, NanGuard

# Steps and readings that wait to be reported, at most; beyond, the oldest is waited for.
MOST_WAITING = 1000


class _Step(NamedTuple):
    segment: int
    step: int
    rate: float
    time_s: float
    rows: int  # its loss is the mean of so many
    made: bool  # an update was made, as far as the host knows
    counted: bool  # it is a step of the run
    stoppable: bool  # a bad row turned its update into a no-op on the device
    checked: bool  # its loss was handed over before the update


@dataclass(frozen=True, slots=True)
class _Reading:
    arrival: Arrival | None  # None where `report` needs no numbers any more
    report: Callable[[list[float]], None]
    of_update: bool  # dropped where the update turned out to be none

    @property
    def here(self) -> bool:
        return self.arrival is None or self.arrival.here


class _Found(NamedTuple):
    step: int
    loss: float | None  # None where the gradient was bad
    stopped: bool


class Results:
    """The results of one run's steps.

    With `stops`, a non-finite number holds or ends the run; until then the updates of a fused optimizer on a device are
    no-ops from the bad one on. In a scenario run (`is_scenario`) these are not steps: they are neither counted nor
    reported. In a user loop they are reported as skipped.
    """

    def __init__(
        self,
        progress: Progress,
        steering: Steering,
        guard: NanGuard,
        losses: HostLosses | DeviceLosses,
        *,
        stops: bool,
        is_scenario: bool,
    ) -> None:
        self._progress, self._steering, self._guard, self._losses = progress, steering, guard, losses
        self._stops, self._is_scenario = stops, is_scenario
        self._waiting: deque[_Step | _Reading] = deque()
        self._rows = 0  # written for the step under way
        self._stoppable = False  # the update under way
        self._reading: _Reading | None = None  # of the update under way
        self._skipped = False  # the last step that was reported
        self._stopping = False  # from a bad row on, as the device does
        self._uncounted = 0  # updates that the device did not make, to be taken off the count
        self._found: _Found | None = None

    @property
    def deferred(self) -> bool:
        """Whether numbers arrive later than their step."""
        return self._losses.deferred

    @property
    def accumulating(self) -> bool:
        """Whether losses without an update wait for the next one."""
        return self._rows > 0

    @property
    def measured(self) -> bool:
        """Whether the update just made was measured."""
        return self._reading is not None

    def check(self, loss: Tensor | float) -> Fault | None:
        """The loss of the step under way, before its update; on a device a bad one is found later."""
        value = self._losses.check(loss)
        return None if math.isfinite(value) else self._guard.bad_loss(self._progress.step, value)

    def look(self, optimizer: torch.optim.Optimizer) -> bool:
        """Before the update: have the device check the gradient. False where the host has to do it now."""
        if not self._losses.deferred:
            return False
        stop = self._stops and stoppable(optimizer)
        if stop and begins_momentum(optimizer):
            return False  # once a run: this look synchronises
        self._losses.look(self._guard.input_most(), optimizer, stop=stop)
        self._stoppable = stop
        return True

    def let_go(self) -> None:
        """After the update, or when it raised."""
        self._losses.let_go()

    def add_reading(self, reading: Deferred[Any], report: Callable[[Any], None]) -> None:
        """Of the update just made; reported after its step."""
        if not self._losses.deferred:
            found = reading.now()
            self._reading = _Reading(None, lambda _: report(found), of_update=True)
        else:
            self._reading = _Reading(Arrival(reading.columns), lambda v: report(reading.read(v)), of_update=True)

    def accumulate(self, loss: Tensor | float, time_s: float) -> None:
        """A loss without an update: the loss of the next step is the mean with it."""
        self._losses.write(loss, time_s)
        self._rows += 1

    def add_step(self, loss: Tensor | float, time_s: float, rate: float, *, made: bool, counted: bool = True) -> None:
        """A step has ended; `counted` is False where it was dropped and is made again."""
        checked = self._losses.write(loss, time_s)
        place = self._progress.segment, self._progress.step
        self._waiting.append(
            _Step(*place, rate, time_s, self._rows + 1, made, counted, self._stoppable, checked=checked)
        )
        self._rows, self._stoppable = 0, False
        if self._reading is not None:
            self._waiting.append(self._reading)
            self._reading = None

    def log(self, value: Tensor | float, report: Callable[[float], None]) -> None:
        """A number of the user's own."""
        if self._losses.deferred and isinstance(value, Tensor):
            arrival = Arrival([value.detach().reshape(1)])
            self._waiting.append(_Reading(arrival, lambda v: report(v[0]), of_update=False))
        else:
            report(number(value))

    def report(self, *, wait: bool = False) -> Fault | None:
        """Report what is on the host, or everything with `wait`.

        Gives the first non-finite number that was found, for the caller to act on before calling again. Where that
        stops the run, everything has been reported.
        """
        self._losses.collect()
        while self._waiting:
            if not self._is_here(self._waiting[0]):
                must = wait or (self._found is not None and self._stops) or len(self._waiting) > MOST_WAITING
                if not must:
                    break
                self._wait_for(self._waiting[0])
            item = self._waiting.popleft()
            if isinstance(item, _Step):
                self._report_step(item)
            elif not (item.of_update and self._skipped):
                item.report(item.arrival.values() if item.arrival is not None else [])
            if self._found is not None and not self._stops:
                break
        return self._fault() if self._found is not None else None

    def release(self) -> None:
        """The run goes on after a fault: the device makes updates again."""
        if self._stops:
            self._stopping = False
            self._losses.release()

    def abandon(self) -> None:
        """The loop raised: report what can still be had."""
        with suppress(RuntimeError):  # a device that has failed delivers nothing
            self._found = None
            while self.report(wait=True) is not None:
                pass
        self._uncount()

    def _is_here(self, item: _Step | _Reading) -> bool:
        return len(self._losses.rows) >= item.rows if isinstance(item, _Step) else item.here

    def _wait_for(self, item: _Step | _Reading) -> None:
        """Synchronises; a reading is waited for by whoever reads it."""
        while isinstance(item, _Step) and len(self._losses.rows) < item.rows:
            self._losses.collect(wait=True)

    def _report_step(self, step: _Step) -> None:
        rows = [self._losses.rows.popleft() for _ in range(step.rows)]
        last, finite = rows[-1], math.isfinite
        loss = last.loss if len(rows) == 1 else mean([row.loss for row in rows])
        overflow = last.overflow > 0  # a scaler skips such a step, whatever the numbers: no fault
        bad_gradient = not overflow and not finite(last.gradient)
        if step.stoppable and (bad_gradient or (step.checked and not overflow and not finite(last.loss))):
            self._stopping = True
        stopped = step.stoppable and self._stopping
        self._skipped = not step.made or overflow or stopped
        if not step.counted:
            return
        if stopped and self._is_scenario:
            self._uncounted += 1
        else:
            self._write(step, loss)
        bad_loss = step.made and not overflow and not finite(loss)
        if (bad_gradient or bad_loss) and self._found is None:
            self._found = _Found(step.step, loss if bad_loss else None, stopped)

    def _write(self, step: _Step, loss: float) -> None:
        if (ring := self._progress.ring) is not None:
            ring.write_step(step.step, loss, step.rate, step.time_s, step.segment, self._skipped)
        if not self._skipped:
            self._steering.add_loss(loss)

    def _fault(self) -> Fault:
        found, self._found = self._found, None
        assert found is not None
        since = self._progress.step - found.step - 1
        self._uncount()
        if self._losses.deferred:
            return self._guard.found_later(found.step, found.loss, since=since, stopped=found.stopped)
        assert found.loss is not None
        return self._guard.bad_loss(found.step, found.loss, after=True)

    def _uncount(self) -> None:
        updates, self._uncounted = self._uncounted, 0
        if updates:
            self._progress.uncount(updates)
            self._steering.drop_updates(updates)
