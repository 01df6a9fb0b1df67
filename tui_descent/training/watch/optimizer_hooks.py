"""The hooks around the optimizer's step. They check the gradient, take readings, and apply the rate multiplier.

The gradients exist in the pre-hook, no matter where the loop calls `zero_grad`. No hook raises an error of ours: the
part that failed is switched off, and training goes on. A hook raises only `StopRun`, which ends the run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.instrument_set import Sample
from tui_descent.instruments.instrument_sets import InstrumentSets
from tui_descent.instruments.net_structure import NetStructure
from tui_descent.instruments.same_batch import SameBatch
from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers
from tui_descent.training.optim import clipping
from tui_descent.training.optim.wrapped_optimizers import has_hooks, with_wrappers
from tui_descent.training.progress import Progress
from tui_descent.training.steering.control import Control
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.steering.steering import Steering
from tui_descent.training.stop_run import StopRun
from tui_descent.training.torch_internals import ScalerListener, compiler_loaded, not_compiled, step_depth
from tui_descent.training.watch.fault import Fault
from tui_descent.training.watch.fault_search import FaultSearch
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.loss_readback import found_inf
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.reading_writer import ReadingPlace
from tui_descent.training.watch.results import Results
from tui_descent.training.watch.wiring import Wiring

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
# After this many updates without a `run.step`, a note says so.
MANY_UPDATES = 100
# The parts that can be switched off, by the names that the user sees.
HOOKS, READINGS, GRADIENT_CHECK = "the optimizer hooks", "the readings", "the gradient check"


class _Hooked:
    """One optimizer with hooks, and the state of its current step.

    `objects` are the optimizer and its wrappers. Calls of their `step` may be nested; together they make one update.
    """

    __slots__ = ("depth", "dropped", "guard", "measured", "n", "objects", "optimizer", "rate", "steered")

    def __init__(self, n: int, steered: SteeredOptimizer, guard: NanGuard, objects: tuple[Any, ...]) -> None:
        self.n, self.steered, self.guard, self.objects = n, steered, guard, objects
        self.optimizer, self.rate = steered.optimizer, steered.rate
        self.depth = 0  # the number of nested step calls
        self.dropped = False  # whether the update in progress is dropped
        self.measured = False  # whether this optimizer's gradients were measured since the last `take_updates`


class OptimizerHooks(ScalerListener):
    """The hooks of one run. They call `begin` before the first reading, once the order of the layers is known. Readings
    are planned one step ahead, because a cosine needs the gradient of the previous step. With several optimizers, or
    several updates between two calls of `run.step`, the readings span all these updates. `wrapped` are the objects that
    the loop steps; each is an optimizer of `steering` or wraps one.
    """

    def __init__(
        self,
        progress: Progress,
        steering: Steering,
        control: Control,
        results: Results,
        layers: LayerList,
        guard: NanGuard,
        sampler: Sampler,
        search: FaultSearch,
        replay: SameBatch | None,
        begin: Callable[[], None],
        failures: Failures | None = None,
        wrapped: tuple[object, ...] = (),
        is_scenario: bool = False,
        wiring: Wiring | None = None,
    ) -> None:
        self._progress, self._steering, self._control = progress, steering, control
        self._results, self._layers, self._guard, self._sampler = results, layers, guard, sampler
        self._search = search
        self._fault: Fault | None = None  # the first fault of a gradient since the last `take_fault`
        self._replay, self._begin, self._failures = replay, begin, failures or Failures()
        self._wrapped, self._is_scenario, self._wiring = wrapped, is_scenario, wiring
        self.per_step = 1  # the number of updates in a fast step: one by each optimizer
        self.updates = 0  # the number of updates since the last `take_updates`
        self.rate = math.nan  # the learning rate of the last update
        self.fast_s = 0.0  # the time that the hooks took in the current fast step
        self._dropped = False  # whether an update was dropped since the last `take_updates`
        self._hooked: list[_Hooked] = []
        self._by_id: dict[int, _Hooked] = {}  # by the id of an optimizer or of a wrapper
        self._spans = False  # whether a reading spans several updates, and is taken in `take_updates`
        self._guarded: NetStructure | None = None  # with several optimizers: the net whose layers their guards check
        self._instruments: InstrumentSets | None = None
        self._attached = False
        self._checks_gradients = True
        self._uncompiled = False  # whether the hooks are excluded from compilation
        self._handles: list[RemovableHandle] = []
        # Optimizers with hooks, by the id of their table of hooks. A wrapper may share the table of the optimizer
        # inside it.
        self._tables: dict[int, torch.optim.Optimizer] = {}
        self._planned: int | None = None  # the step that `_tiers` belongs to
        self._rewinds = 0
        self._interventions = -1  # how many interventions there were when the sampler last restarted
        self._tiers: Tiers | None = None  # what to measure at the planned step
        self._next_tiers: Tiers | None = None  # what to measure at the step after it
        self._muted = False  # whether the instruments are detached until the end of a `muted` context
        self._cost_s = 0.0  # the time that the current reading took so far
        self._last_reading = -1  # the last step whose reading was reported
        self._has_closure = False  # whether the last update had a reading
        self._in_scaler: tuple[int, bool] | None = None  # `updates` and `dropped` from before the scaler's step

    def attach(self) -> None:
        """Register the hooks."""
        self._attached = True
        self.follow()
        self.listen_to_scalers()

    def follow(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Use the current optimizers of the run, because a knob may have replaced one."""
        steered = list(self._steering.optimizers)
        self.per_step, several = len(steered), len(steered) > 1
        self._spans = self._spans or several
        before, self._hooked, self._by_id, self._guarded = self._hooked, [], {}, None
        for n, one in enumerate(steered):
            # The run may be held inside the optimizer's step, so its state is kept.
            hooked = next((known for known in before if known.optimizer is one.optimizer), None)
            if hooked is None:
                wrapper = self._wrapped[n] if n < len(self._wrapped) else None
                guard = NanGuard(self._steering.context.model) if several else self._guard
                hooked = _Hooked(n, one, guard, with_wrappers(one.optimizer, wrapper))
            self._hooked.append(hooked)
            self._by_id |= {id(each): hooked for each in hooked.objects}
        self._progress.fast_steps = 0
        if not self._attached:
            return
        self._uncompiled = compiler_loaded()
        pre_hook, post_hook = not_compiled(self._pre_hook), not_compiled(self._post_hook)
        # An old optimizer keeps its hooks: the run may be held inside its step, while torch iterates over them.
        for hooked in self._hooked:
            for each in filter(has_hooks, hooked.objects):
                if id(each._optimizer_step_pre_hooks) not in self._tables:
                    self._tables[id(each._optimizer_step_pre_hooks)] = each
                    self._handles += [
                        each.register_step_pre_hook(pre_hook),
                        each.register_step_post_hook(post_hook),
                    ]

    def detach(self) -> None:
        """Remove the hooks, and give the optimizers back the learning rates that their owner has set."""
        self._attached = False
        self.ignore_scalers()
        self._remove_hooks()
        with self._failures.guard(HOOKS):
            self._steering.remove_rate_multiplier()
            self._results.restore_found_inf()
        self._detach_instruments()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tables.clear()

    @property
    def failed(self) -> bool:
        """Whether an error has occurred in the hooks, which since then only count updates."""
        return HOOKS in self._failures

    @property
    def measures(self) -> bool:
        """Whether the current step or the next one is to be measured."""
        return self._tiers is not None or self._next_tiers is not None

    @property
    def planned(self) -> bool:
        """Whether there is a plan that was made after the last undo or redo."""
        return self._planned is not None and self._rewinds == self._progress.rewinds

    def plan(self) -> None:
        """Plan the coming step and the one after it, before the forward pass, and attach the instruments if needed."""
        try:
            self._plan()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._switch_off_readings(error)

    def _plan(self) -> None:
        step = self._progress.step
        if self._rewinds != self._progress.rewinds:
            self._rewinds = self._progress.rewinds
            self._discard_plan()
            self._interventions = -1
        if self._interventions != self._progress.interventions:
            self._interventions = self._progress.interventions
            self._sampler.restart(step)
        if self._planned != step:  # otherwise the step was dropped, and its plan still holds
            if self._tiers is not None and self._instruments is not None:
                self._instruments.detach()  # still attached, because their step was dropped
            self._tiers = self._due() if self._planned is None else self._next_tiers
            self._next_tiers = self._due(ahead=1)
            self._planned = step
        if self._tiers is None and self._pauses():
            self._tiers = self._due()
        if self._tiers is not None:
            start_s = time.thread_time()
            self._instruments = self._current_instruments()
            self._instruments.attach(signals=self._tiers.signals, slow=self._tiers.slow)
            if self._tiers.signals or self._tiers.slow:
                self._steering.listen_to_inputs()
            if self._tiers.slow and self._wiring is not None:
                self._wiring.attach()
            self._cost_s += time.thread_time() - start_s

    @contextmanager
    def muted(self) -> Iterator[None]:
        """A context with the instruments detached, for forward and backward passes that do not belong to the step."""
        with self._wiring.muted() if self._wiring is not None else nullcontext(), self._without_instruments():
            yield

    @contextmanager
    def _without_instruments(self) -> Iterator[None]:
        tiers = self._tiers if self._attached and self._planned == self._progress.step else None
        if tiers is None or self._instruments is None or self._muted:
            yield
            return
        self._detach_instruments()
        self._muted = True
        try:
            yield
        finally:
            self._muted = False
            try:
                self._instruments = self._current_instruments()  # surgery may have replaced them
                self._instruments.attach(signals=tiers.signals, slow=tiers.slow)
            except Exception as error:  # noqa: BLE001 - see the module's docstring
                self._switch_off_readings(error)

    def take_updates(self) -> tuple[int, bool]:
        """The number of updates since the last call, and whether one was dropped. Resets both."""
        self._steering.remove_rate_multiplier()
        self._results.restore_found_inf()  # if the step raised, its post-hook has not done this
        if not self._uncompiled and self._attached and compiler_loaded():  # the loop may have compiled its step
            self._remove_hooks()
            self.follow()
        taken = self.updates, self._dropped
        self.updates, self._dropped = 0, False
        measured = [one.n for one in self._hooked if one.measured]
        if taken[0] > self.per_step:
            if not self._spans:
                self._results.drop_reading()  # the reading was taken after the first of several updates
            self._spans = True
        if self._spans and taken[0] and self._tiers is not None:
            self._detach_instruments()
            if measured:
                self._take_reading(self._tiers, measured)
            self._tiers = None
        for one in self._hooked:
            one.depth, one.measured, one.dropped = 0, False, False
        if math.isnan(self.rate) and self._hooked and not self.failed:
            self.rate = self._hooked[0].rate.value  # the first optimizer has made no update yet
        return taken

    def before_scaler_step(self, optimizer: object) -> None:
        """Called when a GradScaler is about to step an optimizer or to skip its update."""
        self._in_scaler = (self.updates, self._dropped) if id(optimizer) in self._by_id else None

    def after_scaler_step(self) -> None:
        """Called after the scaler's step. If the optimizer was not stepped, its update was skipped."""
        if self._in_scaler == (self.updates, self._dropped):
            self._dropped = True
            self._progress.fast_steps = 0
        self._in_scaler = None

    def _discard_plan(self) -> None:
        """Discard the plan and detach the instruments after an undo or redo, because they belong to steps that were
        undone.
        """
        if self._instruments is not None:
            self._instruments.detach()
        self._instruments = self._tiers = self._next_tiers = self._planned = None

    def _current_instruments(self) -> InstrumentSets:
        self._begin()
        return self._layers.instruments(compare=True)

    def _pauses(self, ahead: int = 0) -> bool:
        return self._control.mode.pauses_after(self._progress.step + ahead, ahead=ahead)

    def _due(self, *, ahead: int = 0) -> Tiers | None:
        """What to measure at the coming step, or `ahead` steps later."""
        if not self._reads:
            return None
        step, pace = self._progress.step + ahead, self._steering.pace
        return self._sampler.due(step, period_s=1 / pace if pace else None, pauses=self._pauses(ahead))

    @property
    def _reads(self) -> bool:
        return READINGS not in self._failures and HOOKS not in self._failures

    def _switch_off_readings(self, error: Exception) -> None:
        self._failures.add(READINGS, error)
        self._stop_reading()

    def _stop_reading(self) -> None:
        self._tiers = self._next_tiers = None
        if self._planned is not None or self._layers.net is not None:
            self._planned, self._rewinds = self._progress.step, self._progress.rewinds
        self._detach_instruments()

    def _detach_instruments(self) -> None:
        if self._instruments is not None:
            with self._failures.guard(READINGS):
                self._instruments.detach()

    def _switch_off(self, error: Exception) -> None:
        """Leave the optimizer alone from now on, except for counting its updates."""
        if self._is_scenario:
            raise error
        self._failures.add(HOOKS, error)
        with suppress(Exception):
            self._steering.remove_rate_multiplier()
        with suppress(Exception):
            self._results.restore_found_inf()
        self._stop_reading()

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        hooked = self._by_id.get(id(optimizer))
        if hooked is None:
            return None
        start_s = time.perf_counter()
        hooked.depth += 1
        if hooked.depth > 1:
            # A subclass that calls super().step() fires the hooks twice, and so does a wrapper.
            if step_depth(*hooked.objects) > 1:
                return None
            hooked.depth = 1  # a step that raised never reaches its post-hook
        try:
            if self._progress.fast_steps > 0 and len(args) == 1 and not kwargs and self._gradient_is_finite(hooked):
                rate = hooked.rate.apply()
                if not hooked.n:
                    self.rate = rate
                spent_s = time.perf_counter() - start_s
                self.fast_s = self.fast_s + spent_s if self.updates else spent_s
                return None
            return self._before_step(hooked, args, kwargs)
        except StopRun:
            raise
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._switch_off(error)
            return None

    def _before_step(self, hooked: _Hooked, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """Everything that a fast step leaves out. Returns new arguments if the closure among them was replaced."""
        self._progress.fast_steps = 0
        hooked.dropped = False
        if HOOKS in self._failures:
            return None
        if self.updates == MANY_UPDATES:
            self._progress.note(f"{MANY_UPDATES} updates without a run.step(loss): together they count as one step")
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        # At the first step of a user loop, the layers are known only now. With a closure they are known only after it
        # has run, which is too late for a reading of this step.
        unknown = callable(closure) and self._layers.net is None and not self.updates
        if not unknown and not self.planned and self._ready:
            self._begin()
            self.plan()
        self._update_guards()
        self._has_closure = callable(closure)
        if not callable(closure):
            self._before_update(hooked)
            return None
        if self._tiers is not None and not hooked.measured:
            self._measure(lambda instruments: instruments.copy_weights(hooked.n, partial=self._partial))

        @functools.wraps(closure)
        def watched(*args: Any, **kwargs: Any) -> Any:
            loss = closure(*args, **kwargs)
            try:  # the gradients exist only after the closure has run; an optimizer may call it several times
                if self._layers.net is None and self._ready:
                    self._begin()
                self._before_update(hooked, copy_weights=False)
            except StopRun:
                raise
            except Exception as error:  # noqa: BLE001 - see the module's docstring
                self._switch_off(error)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _post_hook(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        hooked = self._by_id.get(id(optimizer))
        if hooked is None:
            return
        hooked.depth -= 1
        if hooked.depth > 0:
            return
        hooked.depth = 0
        try:
            hooked.rate.remove()
            if self._results.deferred:
                self._results.restore_found_inf()
            if hooked.dropped:
                return
            self.updates += 1
            if self._tiers is not None and not self._spans:
                if hooked.measured:  # false if a closure was never called
                    self._take_reading(self._tiers, (hooked.n,))
                self._tiers = None
        except StopRun:
            raise
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._switch_off(error)

    @property
    def _ready(self) -> bool:
        """Whether the order of the layers is known. With several optimizers, the step of the first one shows only a
        part of it.
        """
        return self._layers.net is not None or self.per_step == 1

    def _update_guards(self) -> None:
        """With several optimizers: let each guard check the layers of its own optimizer."""
        net = self._layers.net
        if self.per_step == 1 or net is self._guarded or net is None:
            return
        self._guarded = net
        for hooked in self._hooked:
            own = {id(p) for p in hooked.steered.parameters()}
            hooked.guard.layers = [watched for watched in net.layers if id(watched.weight) in own]

    def _gradient_is_finite(self, hooked: _Hooked) -> bool:
        """Whether the gradient is finite. On CUDA the device checks it, and this is True until the result arrives."""
        if not self._checks_gradients:
            return True
        try:
            if self._results.deferred and self._results.check_gradient(hooked.optimizer, hooked.guard):
                return True
            return "found_inf" not in vars(hooked.optimizer) and hooked.guard.gradient_is_finite()
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._stop_checking(error)
            return True

    def _stop_checking(self, error: Exception) -> None:
        self._checks_gradients = False
        self._failures.add(GRADIENT_CHECK, error)

    def _gradient_fault(self, hooked: _Hooked) -> bool:
        """Check the gradient. Returns whether the update must be dropped. A fault is handled at the next `run.step`,
        when the loss is known; see `take_fault`.
        """
        if not self._checks_gradients:
            return False
        try:
            hooked.guard.find_input_most()
            if self._gradient_is_finite(hooked):
                return False
            if (overflow := found_inf(hooked.optimizer)) is not None and bool(overflow):
                self._dropped = hooked.dropped = True  # the GradScaler makes the fused optimizer skip this update
                return False
            drops = self._control.drops_updates
            if self._fault is None and self._control.reports(self._progress.step):
                self._fault = hooked.guard.gradient_fault(self._progress.step)
                if self._fault is None:
                    return False
                if not drops:
                    self._fault = dataclasses.replace(self._fault, updated=True)
                    self._search.keep_weights()
                return drops
            return drops and hooked.guard.gradient_fault(self._progress.step) is not None
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._stop_checking(error)
            return False

    def take_fault(self) -> Fault | None:
        """The first gradient fault since the last call that has to be reported; None if there was none."""
        fault, self._fault = self._fault, None
        return fault

    def _before_update(self, hooked: _Hooked, *, copy_weights: bool = True) -> None:
        """Check the gradient. If it is not finite, drop the update; otherwise clip, measure and apply the rate."""
        if self._gradient_fault(hooked):
            self._drop_update(hooked)
        if hooked.dropped:
            return
        if self._tiers is not None and self._tiers.rare and self._replay is not None:
            self._measure(self._replay_batch)
        preclip = self._clip(hooked)
        # All other instruments measure the gradient after clipping, which is the one that the optimizer receives.
        # The cosine of the next step needs this gradient. If the run pauses now, the next step may be a single step,
        # which is always measured.
        remember = self._pauses() or (self._next_tiers is not None and self._next_tiers.signals)
        if (self._tiers is not None or remember) and self._ready and self._reads:
            self._measure(
                functools.partial(self._measure_gradient, hooked, preclip, remember=remember, copy_weights=copy_weights)
            )
        if self._wiring is not None and (self._tiers is not None or self._wiring.looks):
            self._wiring.before_update(hooked.n, closure=self._has_closure)
        rate = hooked.rate.apply()
        if not hooked.n:
            self.rate = rate

    def _measure(self, measure: Callable[[InstrumentSets], None]) -> None:
        """Measure something before an update, and add the time it takes to the cost of the reading."""
        try:
            self._instruments = self._instruments or self._current_instruments()
            start_s = time.thread_time()
            measure(self._instruments)
            self._cost_s += time.thread_time() - start_s
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._switch_off_readings(error)

    def _replay_batch(self, instruments: InstrumentSets) -> None:
        assert self._replay is not None
        instruments.detach()  # the replayed passes do not belong to the step
        self._replay.before_update()  # before clipping, because the slope of the loss needs the unclipped gradient

    def _measure_gradient(
        self,
        hooked: _Hooked,
        preclip: Tensor | None,
        instruments: InstrumentSets,
        *,
        remember: bool,
        copy_weights: bool,
    ) -> None:
        step, again, hooked.measured = self._progress.step, hooked.measured, True
        if self._tiers is not None:
            instruments.before_update(
                hooked.n,
                preclip,
                grad_scale=clipping.grad_scale(hooked.optimizer),
                step=step,
                partial=self._partial,
                copy_weights=copy_weights and not again,
            )
        if remember and not again:
            instruments.remember(hooked.n, step)
        elif again:
            instruments.forget(hooked.n)  # no cosines: they would compare different updates of the two steps

    @property
    def _partial(self) -> bool:
        """Whether measuring a third of the weights is enough.

        All weights are measured if readings are at fixed steps, if the run is paced or pauses, and soon after the start
        and each intervention.
        """
        if self._tiers is not None and self._tiers.complete:
            return False
        all_weights = self._sampler.fixed or self._steering.pace is not None or self._pauses()
        return not all_weights and self._steering.last_change_step <= self._last_reading

    def _clip(self, hooked: _Hooked) -> Tensor | None:
        """Clip the gradients. If that fails, clipping is switched off again. Returns their norm before clipping."""
        if hooked.steered.clip is None:
            return None
        try:
            return self._steering.clip(hooked.steered)
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._control.take_back_clip(hooked.steered, error)
            return None

    def _drop_update(self, hooked: _Hooked) -> None:
        self._dropped = hooked.dropped = True
        # None, not zero: with a zero gradient, momentum and weight decay would still change the weights.
        for parameter in hooked.steered.parameters():
            parameter.grad = None

    def _take_reading(self, tiers: Tiers, measured: Iterable[int]) -> None:
        try:
            self._report_reading(tiers, tuple(measured))
        except Exception as error:  # noqa: BLE001 - see the module's docstring
            self._switch_off_readings(error)

    def _report_reading(self, tiers: Tiers, measured: tuple[int, ...]) -> None:
        assert self._instruments is not None
        start_s = time.thread_time()
        self._layers.report()
        progress, sampler = self._progress, self._sampler
        place = ReadingPlace(progress.segment, progress.step, self._layers.structure)
        sample: Deferred[Any] = self._instruments.after_update(measured)
        if tiers.slow and self._wiring is not None:
            wiring, pair = self._wiring, combine((sample, self._wiring.read()))
            sample = Deferred(pair.columns, lambda numbers: wiring.report(place.step, *pair.read(numbers)))

        def report(values: Sample | None, rare: dict[str, float]) -> None:
            if values is None:
                return  # the norms have been switched off
            self._last_reading = place.step
            place.write(progress.link, values, rare, cost=sampler.cost)

        if tiers.rare and self._replay is not None:
            both = combine((sample, self._replay.after_update()))
            self._results.add_reading(both, lambda values: report(*values))
        else:
            self._results.add_reading(sample, lambda values: report(values, {}))
        sampler.spent(self._cost_s + time.thread_time() - start_s, tiers)
        self._cost_s = 0.0
