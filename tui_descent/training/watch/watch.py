"""`Watch`: the object through which a training loop is watched and steered.

with watch(model, optimizer, name="my run") as run:
    for batch in batches:
        loss = loss_fn(model(batch.x), batch.y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.step(loss)
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.same_batch import ReplayableBatch, SameBatch
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.protocol.events import EndReached, Noted, RunEnded, RunStarted, Status
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.lens_probe import LensProbe
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.progress import Progress
from tui_descent.training.run_description import about_user_loop, position, started
from tui_descent.training.several_nets import as_one_net
from tui_descent.training.steering.command_handler import Evaluation
from tui_descent.training.steering.control import Control, OnFault
from tui_descent.training.steering.steering import Steering
from tui_descent.training.stop_run import StopRun, outcome
from tui_descent.training.undo.resumption import Resumption
from tui_descent.training.undo.snapshot import HoldsState
from tui_descent.training.undo.undo_stack import UndoStack
from tui_descent.training.undo.user_state import user_holders
from tui_descent.training.watch.arguments import listed, steered_optimizers
from tui_descent.training.watch.fault import Fault
from tui_descent.training.watch.fault_search import FaultSearch
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.loss_readback import losses_of, number
from tui_descent.training.watch.misuse import Misuse
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.optimizer_hooks import OptimizerHooks
from tui_descent.training.watch.rate_report import RateReport
from tui_descent.training.watch.results import Results
from tui_descent.training.watch.resuming import Resuming
from tui_descent.training.watch.step_timer import StepTimer
from tui_descent.training.watch.wiring import Wiring

# A series of fast steps takes at most about this long, even if they are slower than expected.
MAX_FAST_S = 0.4
COMMANDS_EVERY_S = 0.05  # commands that arrive during fast steps are received at most this often


class Watch:
    """One watched run.

    `model` and `optimizer` are what `watch()` takes: one of each, or a dict or list of them. `on_fault` says whether a
    non-finite loss or gradient holds the run, ends it, or is only reported. `plan` lists knobs to turn and captions to
    report, each with its step. `replay` repeats the passes of the current batch, for the instruments that need this.
    `about` is the `RunStarted` event of a scenario run; a user loop has none. In a scenario run (`is_scenario`) a
    dropped update does not count as a step. An undo restores the objects in `state` in addition to the model and the
    optimizer; a user loop passes them by name.
    """

    def __init__(
        self,
        model: object,
        optimizer: object,
        *,
        link: KeeperLink | None,
        name: str = "run",
        sampler: Sampler | None = None,
        on_fault: OnFault = "note",
        steering: Steering | None = None,
        plan: Iterable[tuple[int, TurnKnob | str | ClientRequest]] = (),
        about: RunStarted | None = None,
        evaluate: Evaluation | None = None,
        replay: ReplayableBatch | None = None,
        curvature: CurvatureProbe | None = None,
        task: TaskProbe | None = None,
        is_scenario: bool = False,
        state: Mapping[str, object] | Iterable[HoldsState] = (),
    ) -> None:
        self.model = model = as_one_net(model)
        self.outcome: tuple[Status, str] | None = None
        self.name, self._about, self._is_scenario = name, about, is_scenario
        self._sampler, self.progress = (sampler := sampler or Sampler()), (progress := Progress(link))
        self.steering = steering = steering or Steering(model, steered_optimizers(optimizer))
        self.failures = Failures(self._report_failure)
        self._guard = guard = NanGuard(model)
        losses, stops = losses_of(model), on_fault != "note"
        self._results = results = Results(progress, steering, guard, losses, stops=stops, is_scenario=is_scenario)
        self._order = ForwardOrder(self.failures)
        self._layers = layers = LayerList(model, self._order, progress, steering, guard, self.failures)
        self._wiring = wiring = Wiring(model, steering, layers, progress, self.failures, is_scenario=is_scenario)
        replayed = None if replay is None else replay.replay_forward
        self._search = search = FaultSearch(model, self.failures, replay=replayed, muted=steering.muted)
        self._lens = LensProbe(model, self._order, sampler, self.failures, steering.context.setup)
        self.control = Control(
            progress,
            steering,
            results,
            layers,
            plan=plan,
            undo_stack=_undo_stack(link, steering, state, is_scenario=is_scenario),
            curvature=curvature,
            task=task,
            lens=self._lens,
            evaluation=evaluate,
            on_fault=on_fault,
            explain=search.explain,
            is_scenario=is_scenario,
        )
        same_batch = None if replay is None else SameBatch(model, replay)
        parts = progress, steering, self.control, results, layers, guard, sampler, search, same_batch, self._begin
        self._hooks = OptimizerHooks(*parts, self.failures, tuple(listed(optimizer).values()), is_scenario, wiring)
        self._resuming = Resuming(progress, self.control, steering, state if isinstance(state, Mapping) else {})
        self._misuse, self._rates = Misuse(model, progress), RateReport(steering, progress)
        self._timer = StepTimer(sampler, progress, steering)
        self._gave_up, self._entered, self._fast_until_s = False, False, 0.0
        self._first_loss: Tensor | float | None = None  # the loss of a step before the run: see `_enter_late`
        steering.attach(self._hooks.follow, self._hooks.muted)
        if curvature is not None:
            steering.attach(curvature.follow, self._hooks.muted)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that makes the updates; the first one if there are several. The optimizer knob may have
        replaced it.
        """
        return self.steering.context.optimizer

    @property
    def next_step(self) -> int:
        """The number of the next update, which is the number of updates made so far."""
        return self.progress.step

    @property
    def cost(self) -> float:
        """The share of the training thread's time that watching takes, as shown to viewers."""
        return self._sampler.cost

    def __enter__(self) -> Self:
        if self._entered:
            return self
        self._entered = True
        try:
            if self._about is not None:
                self._hooks.attach()
                self._begin()
            else:
                # A framework may never leave the run, and a script without `with` has no way to leave it.
                atexit.register(self._end_at_exit, os.getpid())
                self._wiring.start()
                with self.failures.guard("the optimizer hooks"):
                    self._hooks.attach()
                # The order of a user's layers is known only after the first forward pass.
                with self.failures.guard("the order of the layers"):
                    self._order.record(self.model)
                with self.failures.guard("the search for blocks and hidden activations"):
                    self.steering.start_observing()
        except BaseException:
            self._detach()
            raise
        self.progress.start_s = time.perf_counter() - self._resuming.elapsed_s
        self._timer.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        atexit.unregister(self._end_at_exit)
        if self.outcome is not None:
            return False
        self._detach()
        self._misuse.finish(0 if self._gave_up else self._hooks.updates)
        try:
            if self._first_loss is not None:
                self._begin()
            fault = self._hooks.take_fault()  # the fault of an update that no `step` followed
            if error is None and not self._is_scenario:
                self.control.save_at_end()
            ended_by = self.control.finish(error, self._with_loss(fault, None) if fault is not None else None)
        except Exception as own_error:
            if self._is_scenario:
                raise
            self.failures.add("the last results", own_error)
            ended_by = error
        self.outcome = outcome(ended_by)
        self._end(*self.outcome)
        if error is None and ended_by is not None and not isinstance(ended_by, StopRun):
            raise ended_by
        return isinstance(ended_by, StopRun)

    def _detach(self) -> None:
        """Remove everything that we have attached to the user's objects and to torch."""
        self._hooks.detach()
        self._wiring.stop()
        self._order.stop()
        self._lens.stop()
        self.steering.close()

    def loss(self, loss: Tensor | float, *, batch: object = None) -> bool:
        """Check the loss before `backward()`. A non-finite loss then never reaches the weights.

        Returns False if the batch has to be dropped. `batch` is as in `step`. Raises `StopRun` if the run has to end.
        """
        if self._gave_up:
            return True
        try:
            fault = self._results.check_loss(loss)
            if fault is None or not self.control.reports(fault.step):
                return True
            with self._search.offered(loss, batch):
                return not self.control.handle_fault(fault)
        except StopRun:
            raise
        except Exception as error:  # noqa: BLE001 - nothing of ours may end the user's training
            self._give_up(error)
            return True

    def step(self, loss: Tensor | float, *, batch: object = None) -> bool:
        """Record a step, carry out commands and keep the pace. Call this after `optimizer.step()`.

        Returns False if no update was made since the last call. The loss then becomes part of the mean loss of the next
        step (gradient accumulation). Raises `StopRun` if the run has to end.

        `batch` is used only if the loss or a gradient is not finite. The batch is then run again, to name the operation
        and the layer where the first NaN or infinity arose. It can be

        - the net's input, or a tuple or list that begins with it, as in `(x, y)`: the net is called with `x`;
        - a dict of keyword arguments of the net;
        - a function that computes the loss again, as in `lambda: loss_fn(model(x), y)`. Only then can an operation in
          the loss function be named for certain.

        Afterwards, random numbers, buffers, gradients and weights are the same as before. The batch is not kept. With
        several nets only a function is run again. On a GPU nothing is run again, because the fault is found some
        updates later.
        """
        start_s = time.perf_counter()
        progress, hooks = self.progress, self._hooks
        try:
            if progress.fast_steps == 0 or hooks.updates != hooks.per_step:
                with self._search.offered(loss, batch):
                    return self._full_step(loss, start_s)
            # A fast step is only recorded. A fault that is found here ends the series of fast steps.
            hooks.updates = 0
            progress.fast_steps -= 1
            now_s = start_s - progress.start_s
            reported = self._results.report_fast(loss, now_s, hooks.rate)
            if not reported:
                self._results.add_step(loss, now_s, hooks.rate, made=True)
            self.steering.after_update()
            progress.step += 1
            if not reported:
                with self._search.offered(loss, batch):
                    self.control.report_ready()
            ring = progress.ring
            assert ring is not None
            self._timer.add_fast_step(start_s, hooks.fast_s)
            asked = ring.flagged() and start_s > self.control.received_s + COMMANDS_EVERY_S
            if progress.fast_steps == 0 or asked or start_s > self._fast_until_s:
                busy_s = time.thread_time()
                self._timer.report()
                self._enter_next_step()
                self._timer.add_step(busy_s)
        except StopRun:
            raise
        except Exception as error:  # noqa: BLE001 - nothing of ours may end the user's training
            self._give_up(error)
        return True

    def _full_step(self, loss: Tensor | float, start_s: float) -> bool:
        """Do everything that `step` has to do, including what it leaves out in a fast step."""
        if not self._entered:
            self._enter_late(loss)
            return True
        busy_s = time.thread_time()
        self.progress.fast_steps = 0
        if self._gave_up:
            self._obey_without_watching()
            return True
        results, control, steering = self._results, self.control, self.steering
        updates, dropped = self._hooks.take_updates()
        made, now_s = updates > 0, start_s - self.progress.start_s
        if not self._is_scenario:
            if self._layers.net is None and not self._order.names and not updates and self._first_loss is None:
                # The run was entered between an update and its `step`, as in a callback. No forward pass was seen yet.
                self._keep_first(loss)
                return True
            self._begin()
            self._misuse.step(loss, updates, skipped=dropped)
        in_a_row = 0 if made and not results.deferred else results.skipped_in_a_row + (dropped and not made)
        self._wiring.step(loss, updates, skipped=dropped, skipped_in_a_row=in_a_row)
        if (fault := self._hooks.take_fault()) is not None:
            control.handle_fault(self._with_loss(fault, loss))
        if not made and not dropped:
            results.accumulate(loss, now_s)
            control.obey()
            return False
        counted = made or not self._is_scenario
        has_reading = results.has_reading
        self._timer.count_step()
        self._timer.report()
        results.add_step(loss, now_s, self._hooks.rate, made=made, counted=counted)
        if made:
            steering.after_update()
        if counted:
            control.count_update()
        if steering.needs_loss:
            control.report_all()  # synchronises on CUDA: the plateau schedule's next rate depends on this loss
        else:
            control.report_ready()
        self._enter_next_step()
        if not has_reading and not self._hooks.measures:
            self._timer.add_step(busy_s)
        return made

    @staticmethod
    def _with_loss(fault: Fault, loss: Tensor | float | None) -> Fault:
        """The fault of a gradient, with the loss of its step. If that loss is not finite either, it is the fault,
        because it came first.
        """
        try:
            value = None if loss is None else number(loss)
        except Exception:  # noqa: BLE001 - what a user passes must not end their training
            value = None
        return replace(fault, loss=value, what="gradient" if value is None or math.isfinite(value) else "loss")

    def _enter_late(self, loss: Tensor | float) -> None:
        """Begin the run at the first step, if it was not entered by `with`. It then ends with the process. The first
        step is recorded before the next update, when the layers are known.
        """
        self.__enter__()
        self._keep_first(loss)

    def _keep_first(self, loss: Tensor | float) -> None:
        self._first_loss = loss.detach() if isinstance(loss, Tensor) else loss

    def _end_at_exit(self, process: int) -> None:
        """End a run that was never left, when the interpreter exits."""
        if os.getpid() != process:  # the run belongs to the parent of this forked process
            return
        uncaught = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
        error: BaseException | None = self.control.stopped_by or uncaught
        with contextlib.suppress(RuntimeError):
            self.__exit__(None if error is None else type(error), error, None)

    def _enter_next_step(self) -> None:
        """Do everything that is due before the next step; then decide how many of the next steps can be fast."""
        self._results.metrics.send()
        self.begin_step()
        self._rates.report()
        self.progress.fast_steps = self._count_fast_steps()
        self._fast_until_s = time.perf_counter() + min(MAX_FAST_S, self.control.command_wait_s)

    def _count_fast_steps(self) -> int:
        control, hooks, steering, results = self.control, self._hooks, self.steering, self._results
        ready = self._layers.net is not None and hooks.planned and control.idle
        if not ready or hooks.failed or hooks.measures or results.accumulating or steering.clips_gradients:
            return 0
        if self._wiring.looks or (results.deferred and steering.needs_loss):
            return 0
        planned = min(control.steps_to_plan, self._sampler.steps_to_reading(self.next_step) - 1)
        return int(max(1, min(self._sampler.next_look, planned))) if planned >= 1 else 0

    def begin_step(self) -> None:
        """Prepare the next step. Called before the first forward pass; `step` calls it before all later ones.

        Raises `StopRun` if the run has to end.
        """
        self.control.before_update()
        self.plan_step()

    def plan_step(self) -> None:
        """Plan what is measured at the coming update. Called again if the run has paused since the last plan."""
        self.progress.fast_steps = 0
        if self._layers.net is not None:
            self._hooks.plan()
        if self.progress.interrupted:
            self._timer.restart()

    def _give_up(self, error: Exception) -> None:
        """Stop watching after an error of ours. Training goes on. Of all commands, only the one to stop is still
        obeyed.
        """
        if self._is_scenario:
            raise error
        self.progress.fast_steps = 0
        if not self._gave_up:
            self._gave_up = True
            self.failures.add("watching this loop", error)
            for stop in (self._hooks.detach, self._order.stop, self._wiring.stop):
                with contextlib.suppress(Exception):
                    stop()

    def _obey_without_watching(self) -> None:
        try:
            self.control.obey()
        except StopRun:
            raise
        except Exception:  # noqa: BLE001 - see `_give_up`
            return

    def save_on_disk(self, resumed: Resumption | None) -> None:
        """Save a scenario run on disk from now on. `resumed` says where it goes on if it was resumed; its state has
        been restored already.
        """
        self._resuming.begin_scenario(resumed)

    def resume(self) -> int:
        """Save this run on disk from now on; if it is to be resumed, restore the newest snapshot that fits.

        Returns the step to go on from, 0 for a new run:

            for step in range(run.resume(), steps):

        Call it before the first step. Net, optimizer, random numbers, the knobs' settings and what was passed as
        `state=` are restored. The order of the data and the script's own variables are not. Raises `ValueError` if
        there are snapshots, but none fits the net or the optimizer.
        """
        if self._is_scenario:
            return self.next_step
        self.__enter__()  # so that the end is reported even if no step is left to be made
        return self._resuming.begin_user_loop()

    def log(self, name: str, value: Tensor | float) -> None:
        """Report a metric that the user's loop has computed. It is shown at the number of the next step.

        May be called from any thread, at any time; it never waits and never raises. `val_loss` is drawn as the held-out
        loss. A value that is not a single number is not recorded, and a note says so.
        """
        self._results.metrics.add(name, value)

    def plain(self, model: nn.Module | None = None) -> nn.Module:
        """A deep copy of `model` without anything of this package, to be saved with `torch.save`.

        The copy has bitwise the same outputs. Without `model`, the watched net is copied. After a change of the net's
        structure, such as a residual connection, a file with the net itself can be loaded only where this package is
        installed. A block with a skip becomes an `fx.GraphModule`, and the names of its weights get the prefix
        `block.`. Raises `ValueError` for what cannot be made plain, such as a blend of activations that has not ended.
        """
        return self.steering.plain(model)

    def _begin(self) -> None:
        """Create the shared memory and report the run, as soon as the layers are known. Later calls do nothing.

        If the shared memory cannot be created, a scenario run raises `ChannelError`; a user loop goes on unwatched.
        """
        layers, progress, link = self._layers, self.progress, self.progress.link
        if layers.net is not None:
            return
        self._order.stop()
        with self.failures.guard("the search for blocks and hidden activations"):
            self.steering.finish_observing()
        layers.begin()
        if link is not None:
            try:
                progress.create_ring(self.model, layers=layers.max_rows)
            except ChannelError as error:
                if self._is_scenario:
                    raise
                print(f"tui-descent: training continues unwatched: {error}", file=sys.stderr)
                return
            about = self._about or about_user_loop(
                self.name, self.model, *(one.optimizer for one in self.steering.optimizers)
            )
            progress.emit(started(about, link.launch.run, self.model, layers.layers, self.steering.states()))
            self._resuming.report()
            progress.set_state("running")
            self._rates.report()
        if self._first_loss is not None:
            loss, self._first_loss = self._first_loss, None
            self._results.add_step(loss, 0.0, self.steering.rate.value, made=True)
            self.control.count_update()
            self.control.report_ready()

    def _report_failure(self, text: str) -> None:
        self.progress.emit(Noted(step=self.progress.step, text=text, level="warning"))

    def report_end_reached(self) -> None:
        """Evaluate after the last update of a run that goes on if a viewer asks for more steps."""
        loss, accuracy = self.control.evaluate()
        self.progress.emit(EndReached(loss=loss, accuracy=accuracy, position=self._position(), **self.progress.place))

    def _end(self, status: Status, reason: str) -> None:
        progress = self.progress
        if progress.link is None:
            return
        loss, accuracy = self.control.evaluate() if status != "failed" else (None, None)
        where = self._position()
        progress.emit(
            RunEnded(status=status, step=progress.step, loss=loss, accuracy=accuracy, reason=reason, position=where)
        )
        self.control.close()

    def _position(self) -> tuple[float, ...] | None:
        found = None
        with self.failures.guard("the final position"):
            found = position(self.model)
        return found  # noqa: RET504 - `guard` keeps what is raised


def _undo_stack(
    link: KeeperLink | None,
    steering: Steering,
    state: Mapping[str, object] | Iterable[HoldsState],
    *,
    is_scenario: bool,
) -> UndoStack | None:
    """The run's undo stack; None for a run to which nobody can connect."""
    if link is None or not link.launch.keeps_undo:
        return None
    holders = user_holders(state) if isinstance(state, Mapping) else state
    launch = link.launch
    periodic = launch.keeps_good_state
    return UndoStack(steering.context, tuple(holders), launch.undo_budget, is_scenario, periodic=periodic)
