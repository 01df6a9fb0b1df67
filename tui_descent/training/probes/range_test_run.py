"""A range test during a run: who waits for it, its progress, and what ends it early."""

from __future__ import annotations

import time
from collections.abc import Callable

from tui_descent.protocol.commands import CancelRangeTest, ClientRequest, Mark, RunRangeTest, TurnKnob, WatchCurvature
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.progress import Progress
from tui_descent.training.steering.command_queue import CommandQueue, QueuedCommand
from tui_descent.training.steering.pace import RunMode

PROGRESS_EVERY_S = 0.1
# They touch nothing that the test uses.
HARMLESS = (Mark, WatchCurvature)


class RangeTestRun:
    """One run's range tests. While one is made, commands are looked for before each of its updates."""

    def __init__(self, test: RangeTest, progress: Progress, queue: CommandQueue, mode: RunMode) -> None:
        self._test, self._progress, self._queue, self._mode = test, progress, queue, mode
        self._clients: set[int] = set()
        self._joined: list[ClientRequest] = []
        self._report_s = 0.0

    def run(self, client: int, carry_out: Callable[[QueuedCommand], None]) -> str:
        """Make one and report it; what came of it, in words.

        `carry_out` is for commands that do not disturb it. Raises `ValueError` where it was not made to its end.
        """
        progress, before = self._progress, self._progress.state
        self._clients, self._joined, self._report_s = {client}, [], 0.0
        try:
            found = self._test.run(progress.segment, progress.step, lambda where: self._look(where, carry_out))
        except ValueError as error:
            for order in self._joined:
                progress.reject(order, str(error))
            raise
        finally:
            if before is not None:
                progress.set_state(*before)
        progress.emit(found)
        what = "range test: " + (found.words or f"{found.suggestion:.2g} suggested, f shows it")
        for order in self._joined:
            progress.done(order, what)
        return what

    def _look(self, where: str, carry_out: Callable[[QueuedCommand], None]) -> None:
        """Report progress and obey commands. Raises `ValueError` to give up."""
        progress, now_s = self._progress, time.monotonic()
        if self._mode.stop_reason is not None:
            raise ValueError("range test cancelled: the run is about to stop")
        if now_s >= self._report_s:
            self._report_s = now_s + PROGRESS_EVERY_S
            progress.set_state("testing", where)
        if progress.link is not None and progress.ring is not None:
            progress.ring.beat(now_s)
            if progress.ring.flagged():
                self._queue.poll(progress.link)
        while queued := self._queue.take(at_once=True):
            self._obey(queued, f"at {where}; nothing was changed", carry_out)

    def _obey(self, queued: QueuedCommand, where: str, carry_out: Callable[[QueuedCommand], None]) -> None:
        order, command = queued.request, queued.request.command
        if isinstance(command, CancelRangeTest):
            self._clients.discard(order.client)
            last = not self._clients
            self._progress.done(order, "range test cancelled" if last else "others wait for the range test: it goes on")
            if last:
                raise ValueError(f"cancelled {where}")
        elif isinstance(command, RunRangeTest):
            self._clients.add(order.client)
            self._joined.append(order)
        elif isinstance(command, HARMLESS):
            carry_out(queued)
        else:
            self._queue.put_back(queued)
            word = command.knob if isinstance(command, TurnKnob) else type(command).__name__.lower()
            raise ValueError(f"cancelled by {word[:60]} {where}")
