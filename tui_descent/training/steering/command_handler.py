"""Carries out a run's commands. Each request gets exactly one reply: applied, done, or rejected with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable

from tui_descent.protocol.commands import (
    AnyCommand,
    CancelRangeTest,
    CheckKnob,
    ClientRequest,
    Evaluate,
    Mark,
    MeasureBackwardPass,
    Pause,
    Redo,
    ResizeTerminal,
    Resume,
    RunRangeTest,
    RunSteps,
    Stop,
    TurnKnob,
    Undo,
    WatchCurvature,
    WatchLens,
    WatchTask,
)
from tui_descent.protocol.events import Evaluated, KnobTurned, LedgerTaken, Marked, Rewound
from tui_descent.scenario.knobs import NEUTRAL_KNOBS, text_of
from tui_descent.training.probes.backward_pass import backward_pass
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.lens_probe import LensProbe
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.probes.range_test_run import RangeTestRun
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.progress import Progress, reply_to
from tui_descent.training.run_description import describe
from tui_descent.training.steering.command_queue import CommandQueue, QueuedCommand
from tui_descent.training.steering.pace import RunMode
from tui_descent.training.steering.steering import KnobChange, Steering
from tui_descent.training.stop_run import StopRun
from tui_descent.training.undo.disk_snapshots import DiskSnapshots
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.undo.snapshot_file import SnapshotError
from tui_descent.training.undo.state_on_disk import StateOnDisk
from tui_descent.training.undo.undo_stack import Rewind, UndoStack, undo_entry
from tui_descent.training.watch.layer_list import LayerList

Evaluation = Callable[[], tuple[float, float | None]]
NO_HELD_OUT_DATA = "a test surface has no held-out data"
NO_TASK = "the task cannot be shown for your own loop: its data and what its outputs mean are not known"
NO_REPLAY = "the backward pass of your own loop cannot be repeated: its batches cannot be replayed"
NO_EVALUATION = 'in your own loop, call run.log("val_loss", loss) instead'


class CommandHandler:
    """Carries out the commands of one run.

    `undo_stack` is None if no snapshots are kept. `evaluation` is None if there is no evaluation data. `curvature` and
    `task` are None in a user loop.
    """

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
        task: TaskProbe | None,
        lens: LensProbe | None,
        evaluation: Evaluation | None,
        is_scenario: bool,
    ) -> None:
        self._progress, self._mode, self._steering, self._layers = progress, mode, steering, layers
        self._undo_stack, self._curvature, self._evaluation = undo_stack, curvature, evaluation
        self._task, self._lens = task, lens
        self.disk: DiskSnapshots | None = None  # the snapshots on disk, if the run is saved there
        self._is_scenario = is_scenario
        setup = steering.context.setup
        self._is_surface = setup is not None and setup.batches is None
        test = None if setup is None else RangeTest(steering, setup)
        self._range_test = None if test is None else RangeTestRun(test, progress, queue, mode)

    def carry_out(self, queued: QueuedCommand) -> None:
        """Carry out one command. Several requests may have been merged into it; each gets a reply."""
        progress, request, command = self._progress, queued.request, queued.request.command
        progress.interrupted = True
        try:
            if isinstance(command, TurnKnob):
                self._turn(queued, command)
            else:
                progress.done(request, self._execute(command, request.client))
        except ValueError as error:
            for merged in queued.merged:
                progress.reject(merged, str(error), more=True)
            progress.reject(request, str(error))
        except StopRun:
            raise
        except Exception as error:
            if self._is_scenario:
                raise
            for merged in queued.merged:
                progress.reject(merged, describe(error), more=True)
            progress.reject(request, describe(error))

    def evaluate(self) -> tuple[float | None, float | None]:
        """Evaluate before the next update and report it. Returns loss and accuracy, None without evaluation data.

        The loss of a test surface, which has no held-out data, is returned but not reported.
        """
        if self._evaluation is None:
            return None, None
        with self._steering.muted():
            loss, accuracy = self._evaluation()
        if self._is_surface:
            return loss, accuracy
        self._progress.emit(Evaluated(loss=loss, accuracy=accuracy, **self._progress.place))
        return loss, accuracy

    def report_snapshot(self, reason: str, *, at: Snapshot | None = None) -> None:
        """Report a snapshot: the one in `at`, or one that was just taken. `reason` says why it was taken."""
        assert self._undo_stack is not None
        taken = self._progress if at is None else at
        self._progress.emit(self._undo_stack.event(reason, taken.segment, taken.step))

    def _turn(self, queued: QueuedCommand, turn: TurnKnob) -> None:
        progress, request = self._progress, queued.request
        self._steering.check(turn)
        if self._steering.is_set(turn):  # this is not an intervention, so there is nothing to undo
            where = "" if turn.target == "all" else f" of {turn.target}"
            relative = turn.value[0] in "*/"
            value = next(s.value for s in self._steering.states() if s.name == turn.knob) if relative else turn.value
            for merged in (*queued.merged, request):
                progress.done(merged, f"{turn.knob}{where} is {value} already", more=merged is not request)
            return
        undo_stack = None if turn.knob in NEUTRAL_KNOBS else self._undo_stack
        # A resumed scenario run repeats the intervention at its step. A user loop could do so only after that step.
        saves = self.disk if turn.knob not in NEUTRAL_KNOBS else None
        on_disk = None
        if saves is not None and self._is_scenario:
            saves.save_if_cheap(f"before intervention {progress.interventions + 1}")
            on_disk = saves.place
        before = undo_stack.take(progress.segment, progress.step) if undo_stack is not None else None
        rate, change = self._steering.rate.value, self._apply(turn, before)
        if undo_stack is not None:
            rates = rate, self._steering.rate.value
            number = progress.interventions
            place = on_disk or (progress.segment, progress.step, number - 1)
            entry = undo_entry(number, place, turn, change, before, rates=rates)
            change = change.with_note(undo_stack.push(entry, on_disk=on_disk is not None))
        count = 1 + len(queued.merged)
        for merged in queued.merged:
            what = f"one of {count} changes merged into intervention {progress.interventions}"
            progress.done(merged, what, more=True)
        self._report_turn(request, turn, change, turns=count)
        if saves is not None and not self._is_scenario:
            saves.save_if_cheap(f"after intervention {progress.interventions}")
        if before is not None:
            self.report_snapshot(f"before intervention {progress.interventions}", at=before)

    def _apply(self, turn: TurnKnob, before: Snapshot | None = None) -> KnobChange:
        change = self._steering.turn(turn, step=self._progress.step, before=before)
        self._progress.interventions += 1
        return change

    def _report_turn(self, request: ClientRequest, turn: TurnKnob, change: KnobChange, *, turns: int = 1) -> None:
        self._progress.emit(
            KnobTurned(
                id=self._progress.interventions,
                source=request.source,
                knob=turn.knob,
                target=turn.target,
                old=change.old,
                new=change.new,
                value=turn.value,
                parameters=turn.parameters,
                turns=turns,
                **change.event_fields(),
                **reply_to(request),
                **self._progress.place,
            )
        )
        self._layers.report()

    def _execute(self, command: AnyCommand, client: int) -> str:
        """Carry out a command other than `TurnKnob`. Returns what was done, as text for the user.

        Raises `ValueError` with the reason if it cannot be done.
        """
        mode, progress = self._mode, self._progress
        match command:
            case Pause():
                mode.pause()
                return "paused"
            case Resume():
                mode.resume(progress.step)
                return "resumed"
            case RunSteps():
                mode.resume(progress.step, command.steps)
                return f"{command.steps} step{'s' * (command.steps > 1)}, then a pause"
            case Evaluate():
                if self._evaluation is None:
                    raise ValueError(NO_EVALUATION)
                if self._is_surface:
                    raise ValueError(NO_HELD_OUT_DATA)
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
            case WatchTask():
                if self._task is None:
                    raise ValueError(NO_TASK)
                return self._task.set_watching(client, on=command.on, columns=command.columns, rows=command.rows)
            case WatchLens():
                if self._lens is None or self._is_surface:
                    raise ValueError("a test surface has no activations")
                return self._lens.set_watching(client, on=command.on, layer=command.layer)
            case MeasureBackwardPass():
                return self._measure_backward_pass()
            case RunRangeTest():
                return self._test_rates(client)
            case CancelRangeTest():
                return "no range test is running"
            case Stop():
                progress.set_state("stopping")
                mode.stop_reason = "stop requested"
                return "stopping"
            case CheckKnob():
                self._steering.check(command.turn)
                self._steering.is_set(command.turn)
                return f"{text_of(command.turn)} can be applied"
            case TurnKnob():
                raise AssertionError("handled by _turn")
            case ResizeTerminal():
                raise AssertionError("handled by the keeper")

    def _measure_backward_pass(self) -> str:
        setup, net = self._steering.context.setup, self._layers.net
        if setup is None or net is None:
            raise ValueError(NO_REPLAY)
        with self._steering.muted():
            entries = backward_pass(setup, net)
        self._progress.emit(LedgerTaken(entries=entries, **self._progress.place))
        return "the backward pass was measured"

    def _rewind(self, *, back: bool, highest_loss: float = math.inf) -> str:
        """Undo (`back`) or redo. Returns what was done, as text for the user. `highest_loss` is that of a good state.

        Raises `ValueError` with the reason if it cannot be done.
        """
        undo_stack, progress = self._undo_stack, self._progress
        if undo_stack is None:
            raise ValueError("nothing to undo: this run keeps no snapshots")
        if back:
            move = undo_stack.undo(progress.segment, progress.step, broken=progress.broken, highest_loss=highest_loss)
        else:
            move = undo_stack.redo()
        try:
            move = self._restore(move)
            what = f"{'undone' if back else 'redone'}: {move.what}"
            if move.snapshot is None:
                for turn in move.turns:
                    self._report_turn(
                        ClientRequest(client=0, request=0, source="key", command=turn), turn, self._apply(turn)
                    )
                return what
        except ValueError:
            undo_stack.cancel(move)
            raise
        self._steering.after_restore()
        undo_stack.keep(move)
        old_segment, old_step, snapshot = progress.segment, progress.step, move.snapshot
        # A user loop keeps its own step count.
        parent = snapshot.segment, snapshot.step
        progress.rewind(snapshot.step if self._is_scenario else progress.step, parent=parent)
        if self.disk is not None:
            self.disk.drop_abandoned()
        progress.emit(
            Rewound(
                from_segment=old_segment,
                from_step=old_step,
                to_segment=snapshot.segment,
                to_step=snapshot.step,
                segment=progress.segment,
                step=progress.step,
                what=move.what,
                back=back,
                in_force=undo_stack.in_force,
                knobs=self._steering.states(),
            )
        )
        self._layers.report()
        if self.disk is not None:  # those of the undone steps are removed
            # A state that was read from the disk is not in memory if it does not fit there.
            save = self.disk.save if isinstance(snapshot, StateOnDisk) else self.disk.save_if_cheap
            save(f"after {'an undo' if back else 'a redo'}")
        return what

    def _restore(self, move: Rewind) -> Rewind:
        """Restore the snapshot of an undo or a redo. Returns what is left to do: if a snapshot on disk does not fit,
        that is to restore the value.

        Raises `ValueError`, with nothing changed, if the objects of a user loop refuse their state, or if a state that
        belongs to no intervention does not fit.
        """
        if move.snapshot is None:
            return move
        try:
            move.snapshot.restore()
        except SnapshotError as error:
            if move.entry is None:
                raise
            assert self._undo_stack is not None
            self._undo_stack.cancel(move)
            return self._undo_stack.undo_value(error)
        return move

    def roll_back(self, highest_loss: float = math.inf) -> bool:
        """Go back to the last good state, as an undo does, and halve the learning rate. Returns False if there is
        nothing to go back to.

        The new rate is half of the lower one of the rates before and after the undo: so it falls further if the run
        returns to the same state again. The loss of the good state is at most `highest_loss`.
        """
        progress, rate = self._progress, self._steering.rate
        before, progress.broken = rate.multiplier, True
        try:
            self._rewind(back=True, highest_loss=highest_loss)
        except ValueError:
            return False
        finally:
            progress.broken = False
        turn = TurnKnob(knob="lr", value=f"*{0.5 * min(1.0, before / rate.multiplier)!r}")
        self.carry_out(QueuedCommand(ClientRequest(client=0, request=0, source="rollback", command=turn)))
        return True

    def _test_rates(self, client: int) -> str:
        """Run a range test. Returns its result as text for the user.

        Raises `ValueError` with the reason if the test is not possible or did not finish.
        """
        if self._range_test is None:
            raise ValueError("a range test is not available for your own loop: its batches cannot be replayed")
        if self._progress.broken:
            raise ValueError("a range test needs a finite loss; u goes back to the last good state")
        return self._range_test.run(client, self.carry_out)
