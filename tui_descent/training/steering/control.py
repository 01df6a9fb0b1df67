"""Between two updates: the plan, commands, pauses and the pace; and what a non-finite number does to the run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Literal

from tui_descent.protocol.commands import AnyCommand, ClientRequest, RunRangeTest, TurnKnob
from tui_descent.protocol.events import NotFinite, State
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.progress import Progress
from tui_descent.training.steering.command_handler import CommandHandler, Evaluation
from tui_descent.training.steering.command_queue import Batch, CommandQueue
from tui_descent.training.steering.pace import PaceTimer, RunMode
from tui_descent.training.steering.steering import Steering
from tui_descent.training.stop_run import StopRun
from tui_descent.training.undo.undo_stack import UndoStack
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.nan_guard import Fault
from tui_descent.training.watch.results import Results

# What becomes of a run with a non-finite loss or gradient.
OnFault = Literal["hold", "end", "note"]
NOTED_EVERY = 1000


class Control:
    """One run's obedience: what happens between two updates, in an order that makes it repeatable."""

    def __init__(
        self,
        progress: Progress,
        steering: Steering,
        results: Results,
        layers: LayerList,
        *,
        plan: Iterable[tuple[int, TurnKnob]] = (),
        undo_stack: UndoStack | None = None,
        curvature: CurvatureProbe | None = None,
        evaluation: Evaluation | None = None,
        on_fault: OnFault = "note",
        is_scenario: bool = False,
    ) -> None:
        self.mode = RunMode()
        self.undo_stack, self.on_fault = undo_stack, on_fault
        self._progress, self._steering, self._results = progress, steering, results
        self._curvature, self._is_scenario = curvature, is_scenario
        self._queue = CommandQueue()
        self._handler = CommandHandler(
            progress,
            self.mode,
            self._queue,
            steering,
            layers,
            undo_stack=undo_stack,
            curvature=curvature,
            evaluation=evaluation,
            is_scenario=is_scenario,
        )
        commands: list[tuple[int, AnyCommand]] = [*plan]
        if progress.link is not None:  # turns before range tests of the same step
            commands += [(at, RunRangeTest()) for at in progress.link.launch.range_test_at]
        self._plan = sorted(commands, key=lambda entry: entry[0])
        self._pace = PaceTimer()
        self._noted_at: int | None = None
        self._handling = False  # a fault that came with results

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: only the plan, the clock or the keeper's flag can ask for something."""
        progress, mode, steering = self._progress, self.mode, self._steering
        return (
            progress.link is not None
            and progress.ring is not None
            and not (mode.paused or progress.link.lost or steering.moving or self._queue.waiting)
            and mode.steps_left is None
            and mode.stop_reason is None
            and steering.pace is None
            and (self._curvature is None or not self._curvature.may_read)
        )

    @property
    def steps_to_plan(self) -> float:
        """Updates until the next planned command; infinite without one."""
        return self._plan[0][0] - self._progress.step if self._plan else math.inf

    def settle(self) -> None:
        """Report every step made so far: whatever comes next must not overtake them. Synchronises on a GPU."""
        self._progress.fast_steps = 0
        self._report(wait=True)

    def collect(self) -> None:
        """Report the steps whose numbers have arrived."""
        self._report(wait=False)

    def _report(self, *, wait: bool) -> None:
        if self._handling:  # of a fault, before which everything was reported
            return
        while (fault := self._results.report(wait=wait)) is not None:
            self._handling = True
            try:
                self.handle_fault(fault)
            finally:
                self._handling = False
                self._results.release()

    def handle_fault(self, fault: Fault) -> bool:
        """Report it, then hold, end or go on; whether the update is to be dropped. Raises `StopRun`."""
        self.settle()
        progress = self._progress
        if self.on_fault == "note" and self._noted_at is not None and fault.step < self._noted_at + NOTED_EVERY:
            return False  # bad weights stay bad: reported now and then, not with every step
        self._noted_at = fault.step
        progress.emit(
            NotFinite(segment=progress.segment, step=fault.step, what=fault.what, layer=fault.layer, text=fault.text)
        )
        if self.on_fault == "note":
            return False
        if self.on_fault == "end":
            raise StopRun("diverged", fault.text)
        self.hold(fault.text, broken=True)
        return True

    def completed(self) -> None:
        """An update was made."""
        self._progress.step += 1
        self.mode.made(self._progress.step)

    def evaluate(self) -> tuple[float | None, float | None]:
        """Evaluate before the next update and report it: loss and accuracy; None where there is no data."""
        self.settle()
        return self._handler.evaluate()

    def between(self) -> None:
        """Everything due before the next update. Raises `StopRun`."""
        progress, undo_stack, mode = self._progress, self.undo_stack, self.mode
        progress.stood = False
        if self.steps_to_plan <= 0 or mode.stop_reason is not None or (undo_stack is not None and undo_stack.due):
            self.settle()
        while self.steps_to_plan <= 0:
            _, command = self._plan.pop(0)
            self._handler.carry_out(Batch(ClientRequest(client=0, request=0, source="plan", command=command)))
        if undo_stack is not None and undo_stack.take_periodic(progress.segment, progress.step):
            self._handler.report_snapshot("now and then" if progress.step else "the run's start")
        if progress.link is not None and progress.ring is not None:
            now_s = time.monotonic()
            progress.ring.beat(now_s)
            progress.report_memory()
            alone = progress.link.lost and self._is_scenario
            slow = mode.paused or self._steering.pace is not None
            if slow or progress.ring.flagged() or alone or self._queue.due(now_s):
                self._obey()
        if mode.stop_reason is not None:
            raise StopRun("stopped", mode.stop_reason)
        progress.rewound = False
        if undo_stack is not None:
            undo_stack.state_changed()
        self._steering.advance()
        self._read_curvature()

    def hold(self, reason: str, *, broken: bool = False) -> None:
        """Pause until somebody says how to go on; `broken` offers the last good snapshot. Raises `StopRun`."""
        self.mode.pause()
        if broken and self.undo_stack is not None:
            self.undo_stack.state_changed()
            self._progress.broken = True
            if (good := self.undo_stack.last_good()) is not None:
                reason = f"{reason}; u goes back to step {good.step}"
        self._obey(still=("held", reason))
        self._progress.broken = False

    def wait_at_end(self, steps: int) -> int:
        """All steps are made: wait until more are asked for, and give how many. Raises `StopRun`."""
        if not self.mode.steps_left and not self.mode.onward:  # otherwise they were asked for before
            self.mode.pause()
            self._obey(still=("waiting", f"all steps made: space goes on for {steps} more, q leaves"))
        self.mode.onward = False
        return self.mode.steps_left or steps

    def finish(self, error: BaseException | None) -> BaseException | None:
        """Report what is left; what ended the run, which may be a fault that is found only now."""
        if error is not None:
            self._results.abandon()
            return error
        try:
            self.settle()
        except (StopRun, RuntimeError) as found:
            return found
        return None

    def close(self) -> None:
        """The run is over."""
        if self.undo_stack is not None:
            self.undo_stack.close()
        self._progress.close()

    def _obey(self, *, still: tuple[State, str] = ("paused", "")) -> None:
        """Carry out the commands at hand; stay while paused or ahead of the pace."""
        self.settle()
        progress, mode, steering, link = self._progress, self.mode, self._steering, self._progress.link
        while link is not None and mode.stop_reason is None:
            self._queue.poll(link)
            while batch := self._queue.take(at_once=mode.paused or steering.pace is not None):
                start_s = time.perf_counter()
                self._handler.carry_out(batch)
                self._queue.made(batch, time.perf_counter() - start_s)
            if link.lost:
                if self._is_scenario:
                    raise StopRun("stopped", "the keeper is gone")
                mode.paused = False
            if mode.paused:
                progress.stood = True
                progress.set_state(*(("paused", "") if progress.rewound else still))
                self._read_curvature(paused=True)
                progress.report_memory()
                link.wait(None)
                continue
            progress.set_state("running")
            # Single steps do not wait.
            ahead_s = self._pace.ahead_s(None if mode.steps_left is not None else steering.pace)
            if ahead_s <= 0:
                return
            link.wait(ahead_s)
        if mode.stop_reason is not None:
            raise StopRun("stopped", mode.stop_reason)

    def _read_curvature(self, *, paused: bool = False) -> None:
        """Read it where it is due; while the run is paused or paced that takes none of its time."""
        curvature, progress = self._curvature, self._progress
        free = paused or self._steering.pace is not None
        if curvature is None or not curvature.due(progress.step, paced=free, paused=paused):
            return
        self.settle()
        with self._steering.muted():
            for event in curvature.read(progress.segment, progress.step, paid=not free):
                progress.emit(event)
        progress.stood = True
