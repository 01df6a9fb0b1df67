"""Range tests during a run: the clients that wait for a result, the progress, and commands that end a test early."""

from __future__ import annotations

import time
from collections.abc import Callable

from tui_descent.protocol.commands import (
    CancelRangeTest,
    ClientRequest,
    Mark,
    MeasureBackwardPass,
    RunRangeTest,
    TurnKnob,
    WatchCurvature,
    WatchLens,
    WatchTask,
)
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.progress import Progress
from tui_descent.training.steering.command_queue import CommandQueue, QueuedCommand
from tui_descent.training.steering.pace import RunMode

PROGRESS_EVERY_S = 0.1
# Commands that do not change any state used by the test.
HARMLESS = (Mark, WatchCurvature, WatchTask, WatchLens)


class RangeTestRun:
    """The range tests of one run. During a test, commands are read before each of its passes."""

    def __init__(self, test: RangeTest, progress: Progress, queue: CommandQueue, mode: RunMode) -> None:
        self._test, self._progress, self._queue, self._mode = test, progress, queue, mode
        self._clients: set[int] = set()  # the clients that wait for the result
        self._waiting: list[ClientRequest] = []  # requests for a range test that arrived during the test
        self._next_report_s = 0.0

    def run(self, client: int, carry_out: Callable[[QueuedCommand], None]) -> str:
        """Run a test for `client` and report its result. Returns the reply to the request.

        `carry_out` executes the `HARMLESS` commands that arrive during the test. Raises `ValueError` with the reason if
        the test did not finish.
        """
        progress, state_before = self._progress, self._progress.state
        self._clients, self._waiting, self._next_report_s = {client}, [], 0.0
        try:
            result = self._test.run(progress.segment, progress.step, lambda place: self._before_pass(place, carry_out))
        except ValueError as error:
            for request in self._waiting:
                progress.reject(request, str(error))
            raise
        finally:
            if state_before is not None:
                progress.set_state(*state_before)
        progress.emit(result)
        reply = "range test: " + (result.words or f"{result.suggestion:.3g} suggested; press f to see it")
        for request in self._waiting:
            progress.done(request, reply)
        return reply

    def _before_pass(self, place: str, carry_out: Callable[[QueuedCommand], None]) -> None:
        """Report progress and handle commands. Raises `ValueError` to end the test."""
        progress, now_s = self._progress, time.monotonic()
        if self._mode.stop_reason is not None:
            raise ValueError("range test cancelled: the run is about to stop")
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + PROGRESS_EVERY_S
            progress.set_state("testing", place)
        if progress.link is not None and progress.ring is not None:
            progress.ring.beat(now_s)
            if progress.ring.flagged():
                self._queue.poll(progress.link)
        while queued := self._queue.take(at_once=True):
            self._handle(queued, f"at {place}; nothing was changed", carry_out)

    def _handle(self, queued: QueuedCommand, where: str, carry_out: Callable[[QueuedCommand], None]) -> None:
        request, command = queued.request, queued.request.command
        if isinstance(command, CancelRangeTest):
            self._clients.discard(request.client)
            if self._clients:
                self._progress.done(request, "the range test continues: other clients wait for it")
                return
            self._progress.done(request, "range test cancelled")
            raise ValueError(f"cancelled {where}")
        if isinstance(command, RunRangeTest):
            self._clients.add(request.client)
            self._waiting.append(request)
        elif isinstance(command, HARMLESS):
            carry_out(queued)
        elif isinstance(command, MeasureBackwardPass):
            self._progress.reject(request, "the backward pass is not measured during a range test")
        else:
            self._queue.put_back(queued)
            name = command.knob if isinstance(command, TurnKnob) else type(command).__name__.lower()
            raise ValueError(f"cancelled by {name[:60]} {where}")
