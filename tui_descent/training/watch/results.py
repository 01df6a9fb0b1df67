"""The queue of results: losses and readings are reported in step order, once they are on the host.

On a CPU they are available at once. On CUDA they arrive later, and only `report(wait=True)` waits for them. It is
called before events that must be reported after these results: an intervention, a pause, the end of the run.
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

from tui_descent.instruments.deferred import Deferred, HostCopy
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.fault import Fault
from tui_descent.training.watch.loss_readback import (
    DeviceLosses,
    HostLosses,
    begins_momentum,
    mean,
    number,
    readable,
    stoppable,
)
from tui_descent.training.watch.metric_log import MetricLog
from tui_descent.training.watch.nan_guard import NanGuard

# At most this many steps and readings wait to be reported. If there are more, `report` waits for the oldest one.
MOST_WAITING = 1000
# At most this many losses are kept for the next update.
MOST_LOSSES = 10_000


class _Step(NamedTuple):
    segment: int
    step: int
    rate: float
    time_s: float
    rows: int  # the number of rows, whose mean loss is the loss of the step
    made: bool  # whether an update was made, as far as the host knows
    counted: bool  # whether the step counts as a step of the run
    stoppable: bool  # whether the device skips the update if a row is not finite
    checked: bool  # whether the loss was checked before the update
    readable: bool  # whether `run.step` got the loss as a number


@dataclass(frozen=True, slots=True)
class _Reading:
    arrival: HostCopy | None  # None if `report` already has the numbers
    report: Callable[[list[float]], None]
    of_update: bool  # if it turns out that the update was skipped, the reading is dropped

    @property
    def ready(self) -> bool:
        return self.arrival is None or self.arrival.ready


class _NonFinite(NamedTuple):
    step: int
    loss: float | None  # None if the gradient was not finite
    stopped: bool  # whether the device skipped the update


class Results:
    """The results of one run's steps.

    With `stops`, a non-finite loss or gradient holds or ends the run. From that step on, a fused optimizer on a GPU
    skips its updates until the fault is handled. In a scenario run (`is_scenario`), skipped updates are not counted and
    not reported. In a user loop they are reported as skipped steps.
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
        self.metrics = MetricLog(progress, self._add_metric if losses.deferred else None)
        self.deferred = losses.deferred  # whether numbers arrive later than their step
        self._waiting: deque[_Step | _Reading] = deque()
        self._rows = 0  # the number of rows of the current step so far
        self._stoppable = False  # whether the device can skip the current update
        self._unreadable = False  # whether a loss of the current step is not a number
        self._last_skipped, self._skipped_in_a_row = -2, 0
        self._reading: _Reading | None = None  # the reading of the current update
        self._skipped = False  # whether the last reported step was skipped
        self._stopping = False  # whether the device skips updates
        self._uncounted = 0  # skipped updates that still have to be subtracted from the step count
        self._non_finite: _NonFinite | None = None  # the first fault that was found and not returned yet

    @property
    def accumulating(self) -> bool:
        """Whether losses were added since the last update (gradient accumulation)."""
        return self._rows > 0

    @property
    def has_reading(self) -> bool:
        """Whether a reading of the current update was added."""
        return self._reading is not None

    @property
    def skipped_in_a_row(self) -> int:
        """The number of newest reported steps in a row whose update was skipped."""
        return self._skipped_in_a_row if self._skipped and not self._stopping else 0

    def check_loss(self, loss: Tensor | float) -> Fault | None:
        """Check the loss of the current step before its update. On CUDA a non-finite loss is found later."""
        value = self._losses.check_loss(loss)
        return self._guard.loss_fault(self._progress.step, value)

    def check_gradient(self, optimizer: torch.optim.Optimizer, guard: NanGuard) -> bool:
        """Let the device check the gradient before the update. Returns False if the host has to do it now.

        `guard` knows the layers of this optimizer.
        """
        if not self._losses.deferred:
            return False
        stop = self._stops and stoppable(optimizer)
        if stop and begins_momentum(optimizer):
            return False  # the check on the host synchronises, but this happens only once per run
        self._losses.check_gradient(guard.input_most_gradient(), optimizer, stop=stop)
        self._stoppable = stop
        return True

    def restore_found_inf(self) -> None:
        """Give the optimizer its own `found_inf` back. Called after an update, also if it raised."""
        self._losses.restore_found_inf()

    def add_reading(self, reading: Deferred[Any], report: Callable[[Any], None]) -> None:
        """Add the reading of the current update. It is reported after the step."""
        if not self._losses.deferred:
            values = reading.result()
            self._reading = _Reading(None, lambda _: report(values), of_update=True)
        else:
            self._reading = _Reading(HostCopy(reading.columns), lambda v: report(reading.read(v)), of_update=True)

    def drop_reading(self) -> None:
        """Drop the reading of the current step, because it does not cover all updates of the step."""
        self._reading = None

    def accumulate(self, loss: Tensor | float, time_s: float) -> None:
        """Add a loss without an update. It becomes part of the mean loss of the next step."""
        if self._rows >= MOST_LOSSES:  # the loop makes no updates at all
            self.report(wait=True)
            self._losses.drop_rows()
            self._rows = 0
        self._add_row(loss, time_s)
        self._rows += 1

    def add_step(self, loss: Tensor | float, time_s: float, rate: float, *, made: bool, counted: bool = True) -> None:
        """Add a completed step. `counted` is False if the step was dropped and its number will be used again."""
        checked = self._add_row(loss, time_s)
        place = self._progress.segment, self._progress.step
        self._waiting.append(
            _Step(
                *place,
                rate,
                time_s,
                self._rows + 1,
                made,
                counted,
                self._stoppable,
                checked=checked,
                readable=not self._unreadable,
            )
        )
        self._rows, self._stoppable, self._unreadable = 0, False, False
        if self._reading is not None:
            self._waiting.append(self._reading)
            self._reading = None

    def report_fast(self, loss: Tensor | float, time_s: float, rate: float) -> bool:
        """Report a fast step right away. This is possible if its loss is on the host and nothing waits in the queue. On
        CUDA, or with a non-finite loss, the step has to go through the queue: nothing is done, and the result is False.
        """
        if self.deferred:
            return False
        try:
            value, progress = number(loss), self._progress
        except Exception:  # noqa: BLE001 - not a number; `add_step` reports it
            return False
        if not math.isfinite(value) or progress.ring is None:
            return False
        progress.ring.write_step(progress.step, value, rate, time_s, progress.segment, False)
        self._steering.add_loss(value)
        return True

    def _add_metric(self, arrival: HostCopy, report: Callable[[list[float]], None]) -> None:
        self._waiting.append(_Reading(arrival, report, of_update=False))

    def report(self, *, wait: bool = False) -> Fault | None:
        """Report the results that are on the host. With `wait`, wait for all other results and report them too.

        Returns the fault of the first non-finite number. The caller has to handle it before the next call. If faults
        stop the run, all results have been reported when a fault is returned.
        """
        self._losses.collect()
        while self._waiting:
            if not self._is_ready(self._waiting[0]):
                must_wait = wait or (self._non_finite is not None and self._stops)
                if not must_wait and len(self._waiting) <= MOST_WAITING:
                    break
                self._wait_for(self._waiting[0])
            item = self._waiting.popleft()
            if isinstance(item, _Step):
                self._report_step(item)
            elif not (item.of_update and self._skipped):
                item.report(item.arrival.values() if item.arrival is not None else [])
            if self._non_finite is not None and not self._stops:
                break
        return self._fault() if self._non_finite is not None else None

    def resume(self) -> None:
        """Continue after a fault: from now on the device makes updates again."""
        if self._stops:
            self._stopping = False
            self._losses.allow_updates()

    def report_after_error(self) -> None:
        """Report the remaining results after the loop has raised."""
        with suppress(RuntimeError):  # a device that has failed cannot be read
            self._non_finite = None
            while self.report(wait=True) is not None:
                pass
        self._uncount()

    def _add_row(self, loss: Tensor | float, time_s: float) -> bool:
        """Add a loss to the rows. Returns whether it was checked on the device before the update."""
        try:
            return self._losses.add_row(loss, time_s)
        except Exception:  # noqa: BLE001 - what a user passes must not end their training
            value, found = readable(loss)
            self._progress.note(f"run.step() takes the loss, one number; found {found}")
            if value is None:
                self._unreadable = True
                value = math.nan
            return self._losses.add_row(value, time_s)

    def _is_ready(self, item: _Step | _Reading) -> bool:
        return len(self._losses.rows) >= item.rows if isinstance(item, _Step) else item.ready

    def _wait_for(self, item: _Step | _Reading) -> None:
        """Wait until a step's rows are on the host. For a reading this does nothing, because reading its values waits
        anyway.
        """
        while isinstance(item, _Step) and len(self._losses.rows) < item.rows:
            self._losses.collect(wait=True)

    def _report_step(self, step: _Step) -> None:
        rows = [self._losses.rows.popleft() for _ in range(step.rows)]
        last, finite = rows[-1], math.isfinite
        loss = last.loss if len(rows) == 1 else mean([row.loss for row in rows])
        overflow = last.overflow > 0  # the GradScaler skips this step, so non-finite numbers are not a fault
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
        bad_loss = step.made and not overflow and not finite(loss) and step.readable
        if (bad_gradient or bad_loss) and self._non_finite is None:
            self._non_finite = _NonFinite(step.step, loss if bad_loss else None, stopped)

    def _write(self, step: _Step, loss: float) -> None:
        if (ring := self._progress.ring) is not None:
            ring.write_step(step.step, loss, step.rate, step.time_s, step.segment, self._skipped)
        if not self._skipped:
            self._steering.add_loss(loss)
            return
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if step.step == self._last_skipped + 1 else 1
        self._last_skipped = step.step

    def _fault(self) -> Fault:
        found, self._non_finite = self._non_finite, None
        assert found is not None
        since = self._progress.step - found.step - 1
        self._uncount()
        if self._losses.deferred:
            return self._guard.deferred_fault(found.step, found.loss, since=since, stopped=found.stopped)
        assert found.loss is not None
        fault = self._guard.loss_fault(found.step, found.loss, updated=True)
        assert fault is not None
        return fault

    def _uncount(self) -> None:
        updates, self._uncounted = self._uncounted, 0
        if updates:
            self._progress.uncount(updates)
            self._steering.drop_updates(updates)
