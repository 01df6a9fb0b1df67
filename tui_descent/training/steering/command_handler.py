"""Carries out a run's commands. Each request gets exactly one reply: applied, done, or rejected with the reason."""

from __future__ import annotations

from collections.abc import Callable

from tui_descent.protocol.commands import (
    AnyCommand,
    CancelRangeTest,
    ClientRequest,
    Evaluate,
    Mark,
    Pause,
    Redo,
    Resume,
    RunRangeTest,
    RunSteps,
    Stop,
    TurnKnob,
    Undo,
    WatchCurvature,
)
from tui_descent.protocol.events import Evaluated, KnobTurned, Marked, Rewound
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.probes.range_test_run import RangeTestRun
from tui_descent.training.progress import Progress, reply_to
from tui_descent.training.steering.command_queue import Batch, CommandQueue
from tui_descent.training.steering.pace import RunMode
from tui_descent.training.steering.steering import Steering, Turned
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.undo.undo_stack import WITHOUT_UNDO, UndoStack, undo_entry
from tui_descent.training.watch.layer_list import LayerList

Evaluation = Callable[[], tuple[float, float | None]]


class CommandHandler:
    """Of one run. `undo_stack` is None where no snapshots are kept, `evaluation` where there is no data for it."""

    def __init__(
        self,
        progress: Progress,
        mode: RunMode,
        queue: CommandQueue,
        steering: Steering,
        layers: LayerList,
        *,
        undo_stack: UndoStack | None,
        curvature: CurvatureProbe | None,
        evaluation: Evaluation | None,
        is_scenario: bool,
    ) -> None:
        self._progress, self._mode, self._steering, self._layers = progress, mode, steering, layers
        self._undo_stack, self._curvature, self._evaluation = undo_stack, curvature, evaluation
        self._is_scenario = is_scenario
        setup = steering.context.setup
        test = None if setup is None else RangeTest(steering, setup)
        self._range_test = None if test is None else RangeTestRun(test, progress, queue, mode)

    def carry_out(self, batch: Batch) -> None:
        """Carry it out and reply to every request in it."""
        progress, order, command = self._progress, batch.order, batch.order.command
        progress.stood = True
        try:
            if isinstance(command, TurnKnob):
                self._turn(batch, command)
            else:
                progress.done(order, self._do(command, order.client))
        except ValueError as error:
            for request in batch.earlier:
                progress.reject(request, str(error), more=True)
            progress.reject(order, str(error))

    def evaluate(self) -> tuple[float | None, float | None]:
        """Evaluate before the next update and report it: loss and accuracy; None where there is no data."""
        if self._evaluation is None:
            return None, None
        with self._steering.muted():
            loss, accuracy = self._evaluation()
        self._progress.emit(Evaluated(loss=loss, accuracy=accuracy, **self._progress.place))
        return loss, accuracy

    def report_snapshot(self, reason: str, *, at: Snapshot | None = None) -> None:
        """Report a snapshot, of now or of `at`."""
        assert self._undo_stack is not None
        place = self._progress if at is None else at
        self._progress.emit(self._undo_stack.event(reason, place.segment, place.step))

    def _turn(self, batch: Batch, turn: TurnKnob) -> None:
        progress, order = self._progress, batch.order
        self._steering.check(turn)
        undo_stack = None if turn.knob in WITHOUT_UNDO else self._undo_stack
        before = undo_stack.take(progress.segment, progress.step) if undo_stack is not None else None
        rate, turned = self._steering.rate.value, self._apply(turn, before)
        if undo_stack is not None:
            rates = rate, self._steering.rate.value
            entry = undo_entry(progress.interventions, progress.step, turn, turned, before, rates=rates)
            turned = turned.noted(undo_stack.push(entry))
        at_once = 1 + len(batch.earlier)
        for request in batch.earlier:
            what = f"one of {at_once} changes made together as intervention {progress.interventions}"
            progress.done(request, what, more=True)
        self._report_turn(order, turn, turned, turns=at_once)
        if before is not None:
            self.report_snapshot(f"before intervention {progress.interventions}", at=before)

    def _apply(self, turn: TurnKnob, before: Snapshot | None = None) -> Turned:
        turned = self._steering.turn(turn, step=self._progress.step, before=before)
        self._progress.interventions += 1
        return turned

    def _report_turn(self, order: ClientRequest, turn: TurnKnob, turned: Turned, *, turns: int = 1) -> None:
        self._progress.emit(
            KnobTurned(
                id=self._progress.interventions,
                source=order.source,
                knob=turn.knob,
                target=turn.target,
                old=turned.old,
                new=turned.new,
                value=turn.value,
                parameters=turn.parameters,
                turns=turns,
                **turned.particulars(),
                **reply_to(order),
                **self._progress.place,
            )
        )
        self._layers.report()

    def _do(self, command: AnyCommand, client: int) -> str:
        """What was done, in words. Raises `ValueError` where it cannot be."""
        mode, progress = self._mode, self._progress
        match command:
            case Pause():
                mode.pause()
                return "paused"
            case Resume():
                mode.go(progress.step)
                return "running"
            case RunSteps():
                mode.go(progress.step, command.steps)
                return f"{command.steps} step{'s' * (command.steps > 1)}, then a pause"
            case Evaluate():
                if self._evaluation is None:
                    raise ValueError("no evaluation data")
                self.evaluate()
                return "evaluated"
            case Mark():
                progress.emit(Marked(text=command.text[:80], **progress.place))
                return "marked"
            case Undo() | Redo():
                return self._rewind(back=isinstance(command, Undo))
            case WatchCurvature():
                if self._curvature is None:
                    raise ValueError("curvature is not available for your own loop: its batches cannot be replayed")
                return self._curvature.set_watching(client, on=command.on)
            case RunRangeTest():
                return self._test_rates(client)
            case CancelRangeTest():
                return "no range test is running"
            case Stop():
                progress.set_state("stopping")
                mode.stop_reason = "asked to stop"
                return "stopping"
            case TurnKnob():
                raise AssertionError("turned, not done")

    def _rewind(self, *, back: bool) -> str:
        """Undo or redo: what was done, in words. Raises `ValueError` where it cannot be."""
        undo_stack, progress = self._undo_stack, self._progress
        if undo_stack is None:
            raise ValueError("nothing to undo: this run keeps no snapshots")
        if back:
            move = undo_stack.undo(progress.segment, progress.step, broken=progress.broken)
        else:
            move = undo_stack.redo()
        what = f"{'undone' if back else 'redone'}: {move.what}"
        try:
            if move.snapshot is None:
                for turn in move.turns:
                    self._report_turn(
                        ClientRequest(client=0, request=0, source="key", command=turn), turn, self._apply(turn)
                    )
                return what
            move.snapshot.restore()
        except ValueError:
            undo_stack.cancel(move)
            raise
        self._steering.restored()
        left, place = (progress.segment, progress.step), move.snapshot
        # A user loop goes on counting.
        progress.rewind(place.step if self._is_scenario else progress.step)
        progress.emit(
            Rewound(
                from_segment=left[0],
                from_step=left[1],
                to_segment=place.segment,
                to_step=place.step,
                segment=progress.segment,
                step=progress.step,
                what=move.what,
                back=back,
                in_force=undo_stack.in_force,
                knobs=self._steering.states(),
            )
        )
        self._layers.report()
        return what

    def _test_rates(self, client: int) -> str:
        """Make a range test: what came of it, in words. Raises `ValueError` where it cannot be made."""
        if self._range_test is None:
            raise ValueError("a range test is not available for your own loop: its batches cannot be replayed")
        if self._progress.broken:
            raise ValueError("a range test needs a finite loss; u goes back to the last good state")
        return self._range_test.run(client, self.carry_out)
