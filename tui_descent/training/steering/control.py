"""Controls the run between two updates: commands, pauses, the pace, and what happens at a non-finite value."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Literal, NoReturn

from tui_descent.protocol.commands import AnyCommand, ClientRequest, RunRangeTest, TurnKnob
from tui_descent.protocol.events import KnobTurned, Noted, NotFinite, State, Status
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.lens_probe import LensProbe
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.progress import Progress
from tui_descent.training.run_description import OUR_NOTE, describe
from tui_descent.training.steering.command_handler import CommandHandler, Evaluation
from tui_descent.training.steering.command_queue import CommandQueue, QueuedCommand
from tui_descent.training.steering.knobs.context import RECENT_LOSSES
from tui_descent.training.steering.pace import PaceTimer, RunMode
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.steering.steering import Steering
from tui_descent.training.stop_run import COMMAND_KILLED, StopRun
from tui_descent.training.undo.disk_snapshots import DiskSnapshots
from tui_descent.training.undo.resumption import Plan, Resumption
from tui_descent.training.undo.undo_stack import UndoStack
from tui_descent.training.watch.fault import Fault
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.results import Results

# At a non-finite loss or gradient: hold the run, end it, or only report it.
OnFault = Literal["hold", "end", "note"]
REPORT_FAULT_EVERY = 1000  # steps
DIVERGED = 10.0  # with --rollback: a mean loss of this many times the first loss
FAULT_ENDS_AFTER = 50  # after this many finite steps, the next fault counts as a new one


class Control:
    """Controls one run between its updates. Everything is done in a fixed order, so a run can be repeated exactly.

    `plan` lists knobs to turn and captions to report, each with the step before which to do so. In a run that was
    resumed, it also has requests to repeat. `explain` finds the cause of a fault.
    """

    def __init__(
        self,
        progress: Progress,
        steering: Steering,
        results: Results,
        layers: LayerList,
        *,
        plan: Iterable[tuple[int, TurnKnob | str | ClientRequest]] = (),
        undo_stack: UndoStack | None = None,
        curvature: CurvatureProbe | None = None,
        task: TaskProbe | None = None,
        lens: LensProbe | None = None,
        evaluation: Evaluation | None = None,
        on_fault: OnFault = "note",
        explain: Callable[[Fault], Fault] = lambda fault: fault,
        is_scenario: bool = False,
    ) -> None:
        self._explain = explain
        self.mode = RunMode()
        self.undo_stack, self.on_fault = undo_stack, on_fault
        self._disk: DiskSnapshots | None = None
        self._rollback, self._rollbacks = 0 if progress.link is None else progress.link.launch.rollback, 0
        # The segment and the step of the last update before which everything that was due has been done.
        self._begun: tuple[int, int] | None = None
        self._is_begun = False  # whether a run that was resumed had done so before the update that comes now
        self._progress, self._steering, self._results = progress, steering, results
        self._curvature, self._task, self._is_scenario = curvature, task, is_scenario
        self._lens = lens
        self._queue = CommandQueue()
        self._handler = CommandHandler(
            progress,
            self.mode,
            self._queue,
            steering,
            layers,
            undo_stack=undo_stack,
            curvature=curvature,
            task=task,
            lens=lens,
            evaluation=evaluation,
            is_scenario=is_scenario,
        )
        commands: list[tuple[int, AnyCommand | str | ClientRequest]] = [*plan]
        if progress.link is not None:  # at the same step, knobs come before range tests
            commands += [(at, RunRangeTest()) for at in progress.link.launch.range_test_at]
        self._plan = sorted(commands, key=lambda entry: entry[0])
        self._pace = PaceTimer()
        self._reported_at: int | None = None  # the step of the last fault that was reported
        self._faulty_at: int | None = None  # the step of the last fault
        self._handling_fault = False
        self.received_s = -math.inf  # when commands arrived last, by `time.perf_counter`
        self.stopped_by: StopRun | None = None  # the `StopRun` that was raised last

    @property
    def idle(self) -> bool:
        """Whether the next steps need nothing between them, until the plan, the clock or the keeper's flag requires
        something.
        """
        progress, mode, steering = self._progress, self.mode, self._steering
        return (
            progress.link is not None
            and progress.ring is not None
            and not (mode.paused or progress.link.lost or steering.in_transition)
            and self.command_wait_s > 0
            and mode.steps_left is None
            and mode.stop_reason is None
            and steering.pace is None
            and (self._lens is None or not self._lens.awaits_pass)
            and (self._curvature is None or not self._curvature.may_read)
        )

    @property
    def command_wait_s(self) -> float:
        """The time until a waiting command may be carried out; infinite if none is waiting."""
        return self._queue.wait_s(time.monotonic())

    @property
    def steps_to_plan(self) -> float:
        """The number of updates until the next planned command; infinite if there is none."""
        return self._plan[0][0] - self._progress.step if self._plan else math.inf

    def report_all(self) -> None:
        """Report all steps made so far. Later events are then sent after them. Synchronises on a GPU."""
        self._progress.fast_steps = 0
        self._report(wait=True)

    def report_ready(self) -> None:
        """Report the steps whose numbers have been read back, without waiting."""
        self._report(wait=False)

    def _report(self, *, wait: bool) -> None:
        if self._handling_fault:  # everything before the fault has already been reported
            return
        while (fault := self._results.report(wait=wait)) is not None:
            self._handling_fault = True
            try:
                if self.reports(fault.step):
                    self.handle_fault(fault)
            finally:
                self._handling_fault = False
                self._results.resume()

    @property
    def drops_updates(self) -> bool:
        """Whether an update with a non-finite gradient is dropped."""
        return self.on_fault != "note"

    def reports(self, step: int) -> bool:
        """Whether a fault at this step is reported. In a loop that goes on after faults, only the first of several in a
        row is reported: NaN weights stay NaN. While they last, the fault is reported again every `REPORT_FAULT_EVERY`
        steps.
        """
        last, reported, self._faulty_at = self._faulty_at, self._reported_at, step
        if self.on_fault != "note" or last is None or reported is None:
            return True
        goes_on = last <= step <= last + FAULT_ENDS_AFTER and step < reported + REPORT_FAULT_EVERY
        return not goes_on

    def handle_fault(self, fault: Fault) -> bool:
        """Report the fault, then hold the run, end it, or continue. Returns whether to drop the update.

        Raises `StopRun` if the run has to end.
        """
        fault = self._report_fault(fault)
        if self.on_fault == "note":
            self._progress.broken = self._progress.broken or fault.weights_finite is False
            return False
        if self._roll_back(fault.text):
            return True
        if self.on_fault == "end":
            self._stop("diverged", fault.text)
        self.hold(fault.text, broken=True, dropped=fault.batch_can_be_dropped)
        return True

    def _roll_back(self, why: str, highest_loss: float = math.inf) -> bool:
        """Go back to the last good state with half of the learning rate, if the user has asked for that. Returns
        whether that was done.
        """
        progress, asked = self._progress, self._rollback
        if self._rollbacks >= asked or self.undo_stack is None:
            return False
        self.undo_stack.state_changed()
        if not self._handler.roll_back(highest_loss):
            return False
        self._rollbacks += 1
        progress.emit(Noted(step=progress.step, text=f"rollback {self._rollbacks} of {asked}: {why}", level="warning"))
        return True

    def _check_divergence(self) -> None:
        """Roll back a run whose loss is finite but has become much higher than the first one."""
        context = self._steering.context
        first, losses = context.first_loss, context.losses
        if self._rollbacks >= self._rollback or first is None or first <= 0 or len(losses) < RECENT_LOSSES:
            return
        mean, highest = sum(losses) / len(losses), DIVERGED * first
        if mean > highest:
            self.report_all()
            self._roll_back(f"the loss has risen to {mean:.3g}, from {first:.3g} at the start", highest)

    def _report_fault(self, fault: Fault) -> Fault:
        """Report the fault with its cause, after all steps before it. Returns it with the cause."""
        self.report_all()
        progress = self._progress
        self._reported_at = fault.step
        fault = self._explain(fault)
        progress.emit(
            NotFinite(
                segment=progress.segment,
                step=fault.step,
                what=fault.what,
                layer=fault.layer,
                text=fault.text,
                cause=fault.cause,
                operation=fault.operation,
                where=fault.where,
                value=fault.value,
                loss=fault.loss,
                weights_finite=fault.weights_finite,
                then=self.on_fault,
            )
        )
        return fault

    def count_update(self) -> None:
        """Count an update that was made."""
        self._progress.step += 1
        self.mode.count_update(self._progress.step)

    def evaluate(self) -> tuple[float | None, float | None]:
        """Evaluate before the next update and report it. Returns loss and accuracy, None without evaluation data."""
        self.report_all()
        return self._handler.evaluate()

    def take_back_clip(self, one: SteeredOptimizer, error: Exception) -> None:
        """Switch clipping off again, because it has raised `error` inside the optimizer's step."""
        old, one.clip = f"{one.clip:.6g}", None
        self._progress.interventions += 1
        self._progress.emit(
            KnobTurned(
                id=self._progress.interventions,
                source="key",
                knob="clip",
                target=one.target,
                old=old,
                new="off",
                value="off",
                note=f"clipping was switched off again: it raised {describe(error)}",
                client=0,
                request=0,
                **self._progress.place,
            )
        )

    def obey(self) -> None:
        """Carry out the commands that have arrived, without an update. Raises `StopRun` if the run has to end."""
        progress = self._progress
        if progress.ring is not None:
            progress.ring.beat(time.monotonic())
            if self.mode.paused or progress.ring.flagged():
                self._process_commands()
        if self.mode.stop_reason is not None:
            if self._disk is not None:
                self._disk.save_now("stopped")
            raise StopRun("stopped", self.mode.stop_reason)

    def before_update(self) -> None:
        """Do everything that is due before the next update. Raises `StopRun` if the run has to end."""
        progress, undo_stack, mode, disk = self._progress, self.undo_stack, self.mode, self._disk
        progress.interrupted = False
        due = (undo_stack is not None and undo_stack.due) or (disk is not None and disk.due)
        if self.steps_to_plan <= 0 or mode.stop_reason is not None or due:
            self.report_all()
        if self._rollback:
            self._check_divergence()
        if disk is not None:
            disk.save_if_due()
        while self.steps_to_plan <= 0:
            _, command = self._plan.pop(0)
            if isinstance(command, str):
                progress.emit(Noted(step=progress.step, text=command, level="caption"))
                continue
            if not isinstance(command, ClientRequest):
                command = ClientRequest(client=0, request=0, source="plan", command=command)
            self._handler.carry_out(QueuedCommand(command))
        if undo_stack is not None and undo_stack.take_periodic(progress.segment, progress.step):
            self._handler.report_snapshot("periodic" if progress.step else "start of the run")
        if progress.link is not None and progress.ring is not None:
            now_s = time.monotonic()
            progress.ring.beat(now_s)
            progress.report_memory()
            self._keep_connected(progress.link)
            keeper_gone = progress.link.lost and self._is_scenario
            slow = mode.paused or self._steering.pace is not None
            if slow or progress.ring.flagged() or keeper_gone or self._queue.wait_s(now_s) <= 0:
                self._process_commands()
        if mode.stop_reason is not None:
            self._stop("stopped", mode.stop_reason)
        progress.rewound = False
        if undo_stack is not None:
            undo_stack.state_changed()
        if not self._is_begun:
            self._steering.advance()
        self._begun, self._is_begun = (progress.segment, progress.step), False
        self._read_curvature()
        self._picture_task()
        self._count_pre_activations()

    def save_on_disk(self, disk: DiskSnapshots) -> None:
        """Save the run in these snapshots from now on."""
        self._disk = self._handler.disk = disk
        disk.position = self._position
        if self.undo_stack is not None:
            disk.in_effect = self.undo_stack.saved
        if self.undo_stack is not None and self._is_scenario:
            self.undo_stack.disk, disk.needed = disk, self.undo_stack.places

    def save_at_end(self) -> None:
        """Save the state after the last update, unless that has been done."""
        if self._disk is not None:
            self._disk.save_now("all steps made")

    def resume(self, found: Resumption, replay: Plan = ()) -> None:
        """Go on from a snapshot. Call this before the first update. `replay` are interventions to make again."""
        self._plan = sorted([*replay, *self._plan], key=lambda entry: entry[0])
        self._is_begun = found.begun
        if self.undo_stack is not None:
            self.undo_stack.resume(found.in_force, found.undo)
        if self._disk is not None:
            self._disk.begin_at((found.segment, found.step, found.interventions))

    def _position(self) -> dict[str, Any]:
        """Where the run is, for a snapshot on disk."""
        progress, undo_stack = self._progress, self.undo_stack
        link = progress.link
        return {
            "run": "" if link is None else link.launch.run,
            **progress.place,
            "parents": [[segment, *parent] for segment, parent in progress.parents.items()],
            "interventions": progress.interventions,
            # Without an undo stack, no intervention can have been undone.
            "in_force": list(range(1, progress.interventions + 1) if undo_stack is None else undo_stack.in_force),
            "goal": None if math.isinf(self.mode.goal) else int(self.mode.goal),
            "begun": self._begun == (progress.segment, progress.step) or self._is_begun,
            "elapsed_s": time.perf_counter() - progress.start_s,
        }

    def hold(self, reason: str, *, broken: bool = False, dropped: bool = False) -> None:
        """Hold the run until a command continues or ends it. With `broken`, an undo returns to the last good snapshot.

        `dropped` says that the update of a bad batch was not made, so the run can go on without this batch. Raises
        `StopRun` if the run has to end.
        """
        self.mode.pause()
        reason += "; space drops this batch" if dropped else ""
        if broken and self.undo_stack is not None:
            self.undo_stack.state_changed()
            self._progress.broken = True
            if (good := self.undo_stack.last_good()) is not None:
                lost = self._progress.step - good.step
                back = f" {lost} step{'s' * (lost != 1)}" if lost else ""
                if lost > good.step:  # most of the run would be lost
                    back += f", to step {good.step}"
                reason += f"; u goes back{back}"
        reason += " · q: leave" if dropped else ""
        self._process_commands(paused_as=("held", reason))
        self._progress.broken = False

    @property
    def waits_at_end(self) -> bool:
        """Whether a run that has made all its steps waits; False if more steps were requested before."""
        return not self.mode.steps_left and not self.mode.continue_past_goal

    def wait_at_end(self, steps: int) -> int:
        """Wait at the end until more steps are requested. Returns their number, which is `steps` by default.

        Raises `StopRun` if the run has to end.
        """
        if self.waits_at_end:
            self.mode.pause()
            with self._steering.muted():  # the next step may already be planned with a reading
                self._process_commands(paused_as=("waiting", f"all steps done; space: {steps} more steps, q: leave"))
        self.mode.continue_past_goal = False
        return self.mode.steps_left or steps

    def finish(self, error: BaseException | None, fault: Fault | None = None) -> BaseException | None:
        """Report the remaining results. Returns the exception that ended the run, or None.

        `error` is the exception raised by the loop. If the loop has raised nothing, a fault that is found only now may
        still end the run. So may `fault`, a gradient fault at a step for which `Watch.step` was not called.
        """
        if self._disk is not None:
            self._disk.wait()
        if error is not None:
            if fault is not None:
                self._report_fault(fault)
            self._results.report_after_error()
            self._name_likely_cause(error)
            return error
        try:
            if fault is not None:
                self.handle_fault(fault)
            self.report_all()
        except (StopRun, RuntimeError) as late_error:
            return late_error
        return None

    def _name_likely_cause(self, error: BaseException) -> None:
        """If the loop raised just after a change of its net, mention the change in the error and in the event log."""
        progress = self._progress
        cause = self._steering.likely_cause(progress.step)
        if cause is None or isinstance(error, StopRun) or not isinstance(error, Exception):
            return
        error.add_note(f"{OUR_NOTE}{cause}")
        progress.emit(Noted(step=progress.step, text=f"{type(error).__name__}; {cause}", level="error"))

    def close(self) -> None:
        """Free the snapshots and close the link, after the end of the run."""
        if self._disk is not None:
            self._disk.close()
        if self.undo_stack is not None:
            self.undo_stack.close()
        self._progress.close()

    def _stop(self, status: Status, reason: str) -> NoReturn:
        """Raise `StopRun`. Before that, tell the keeper that the user's loop is stopping, because a framework may catch
        `StopRun` and save for a long time.
        """
        if status == "stopped" and self._disk is not None:
            self._disk.save_now("stopped")
        self.stopped_by = StopRun(status, reason)
        if not self._is_scenario:
            self._progress.set_state("stopping", reason)
        raise self.stopped_by

    def _process_commands(self, *, paused_as: tuple[State, str] = ("paused", "")) -> None:
        """Carry out the commands that have arrived. Wait while the run is paused, or until the pace allows a step.

        `paused_as` is the state, with its reason, to report while the run is paused.
        """
        self.report_all()
        progress, mode, steering, link = self._progress, self.mode, self._steering, self._progress.link
        while link is not None and mode.stop_reason is None:
            if self._queue.poll(link):
                self.received_s = time.perf_counter()
            while queued := self._queue.take(at_once=mode.paused or steering.pace is not None):
                start_s = time.perf_counter()
                self._handler.carry_out(queued)
                self._queue.add_cost(queued, time.perf_counter() - start_s)
            if link.lost and not self._keep_connected(link):
                if self._is_scenario:
                    self._stop("stopped", "the keeper has exited")
                mode.paused = False
            if mode.paused:
                progress.interrupted = True
                progress.set_state(*(("paused", "") if progress.rewound else paused_as))
                self._read_curvature(paused=True)
                self._picture_task(paused=True)
                self._count_pre_activations(paused=True)
                progress.report_memory()
                link.wait(None)
                continue
            progress.set_state("running")
            # Single steps are not paced.
            wait_s = self._pace.wait_s(None if mode.steps_left is not None else steering.pace)
            if wait_s <= 0:
                return
            link.wait(wait_s)
        if mode.stop_reason is not None:
            if paused_as[0] == "waiting" and not progress.rewound:  # it has made all its steps
                self._stop("finished", "")
            self._stop("stopped", mode.stop_reason)

    def _keep_connected(self, link: KeeperLink) -> bool:
        """Replace a keeper that has died. Returns whether the connection works."""
        if link.keep_connected() and self._is_scenario and not link.launch.attended:
            self.mode.stop_reason = self.mode.stop_reason or COMMAND_KILLED  # the keeper was the command itself
        return not link.lost

    def _read_curvature(self, *, paused: bool = False) -> None:
        """Measure the curvature if this is due. While paused or paced, the time is not charged to the budget."""
        curvature, progress = self._curvature, self._progress
        free = paused or self._steering.pace is not None
        if curvature is None or not curvature.due(progress.step, paced=free, paused=paused):
            return
        self.report_all()
        with self._steering.muted():
            for event in curvature.read(progress.segment, progress.step, paid=not free):
                progress.emit(event)
        progress.interrupted = True

    def _picture_task(self, *, paused: bool = False) -> None:
        """Send a picture of what is being learnt, if somebody watches and one is due."""
        task, progress = self._task, self._progress
        if task is None or not task.due(progress, paused=paused):
            return
        self.report_all()
        with self._steering.muted():
            progress.emit(task.picture(progress, paid=not paused))
        progress.interrupted = True

    def _count_pre_activations(self, *, paused: bool = False) -> None:
        """Send the inputs of the activations that somebody watches, if they were copied in the last pass of a user loop
        or are due now. A part that raises is switched off.
        """
        lens, progress = self._lens, self._progress
        if lens is None:
            return
        if lens.awaits_pass and not paused:
            self._send_pre_activations(lens, paid=True)
        if not lens.due(progress, paused=paused):
            return
        self.report_all()
        with self._steering.muted() if lens.evaluates else nullcontext():
            lens.start(progress)
        if lens.evaluates:
            self._send_pre_activations(lens, paid=not paused)

    def _send_pre_activations(self, lens: LensProbe, *, paid: bool) -> None:
        for event in lens.finish(self._progress, paid=paid):
            self._progress.emit(event)
        self._progress.interrupted = True
