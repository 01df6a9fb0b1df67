"""The hooks around the optimizer's step. They check the gradient, take readings, and apply the rate multiplier.

The gradients exist in the pre-hook, no matter where the loop calls `zero_grad`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.instrument_set import InstrumentSet, Sample
from tui_descent.instruments.same_batch import SameBatch
from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers
from tui_descent.training.optim import clipping
from tui_descent.training.progress import Progress
from tui_descent.training.steering.control import Control
from tui_descent.training.steering.steering import Steering
from tui_descent.training.torch_internals import step_depth
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.loss_readback import found_inf
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.reading_writer import ReadingPlace
from tui_descent.training.watch.results import Results

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class OptimizerHooks:
    """The hooks of one run. They call `begin` before the first reading, when the order of the layers is known.

    Whether a step is measured is planned one step ahead, since a cosine needs the gradient of the previous step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        steering: Steering,
        control: Control,
        results: Results,
        layers: LayerList,
        guard: NanGuard,
        sampler: Sampler,
        replay: SameBatch | None,
        begin: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._progress, self._steering, self._control = progress, steering, control
        self._results, self._layers, self._guard, self._sampler = results, layers, guard, sampler
        self._replay, self._begin = replay, begin
        self.updates = 0  # the number of updates since the last `take_updates`
        self.rate = math.nan  # the learning rate of the last update
        self.fast_s = 0.0  # the time that the hooks took in the current fast step
        self._dropped = False  # whether an update was dropped since the last `take_updates`
        self._instruments: InstrumentSet | None = None
        self._handles: list[RemovableHandle] = []
        self._hooked: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._depth = 0  # the number of nested step calls
        self._planned: int | None = None  # the step that `_tiers` belongs to
        self._rewinds = 0
        self._tiers: Tiers | None = None  # what to measure at the planned step
        self._next_tiers: Tiers | None = None  # what to measure at the step after it
        self._cost_s = 0.0  # the time that the current reading took so far
        self._last_reading = -1  # the last step whose reading was reported

    def attach(self) -> None:
        """Register the hooks."""
        self._hooked.add(self._optimizer)
        self._handles += [
            self._optimizer.register_step_pre_hook(self._pre_hook),
            self._optimizer.register_step_post_hook(self._post_hook),
        ]

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer, which the run has switched to."""
        self._optimizer = optimizer
        self._progress.fast_steps = 0
        # The old optimizer keeps its hooks: the run may be held inside its step, while torch iterates over them.
        if self._handles and optimizer not in self._hooked:
            self.attach()

    def detach(self) -> None:
        """Remove the hooks, and leave the optimizer with the learning rates that its owner set."""
        self._steering.remove_rate_multiplier()
        self._results.restore_found_inf()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        if self._instruments is not None:
            self._instruments.detach()

    @property
    def measures(self) -> bool:
        """Whether the current step or the next one is to be measured."""
        return self._tiers is not None or self._next_tiers is not None

    @property
    def planned(self) -> bool:
        """Whether there is a plan, made since the last undo or redo."""
        return self._planned is not None and self._rewinds == self._progress.rewinds

    def plan(self) -> None:
        """Plan the coming step and the one after it, before the forward pass, and attach the instruments if needed."""
        step = self._progress.step
        if self._rewinds != self._progress.rewinds:
            self._rewinds = self._progress.rewinds
            self._discard_plan()
        if self._planned != step:  # otherwise the step was dropped, and its plan still holds
            if self._tiers is not None and self._instruments is not None:
                self._instruments.detach()  # still attached, since their step was dropped
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
            self._cost_s += time.thread_time() - start_s

    @contextmanager
    def muted(self) -> Iterator[None]:
        """A context with the instruments detached, for forward and backward passes that do not belong to the step."""
        tiers = self._tiers if self._planned == self._progress.step else None
        if tiers is None or self._instruments is None:
            yield
            return
        self._instruments.detach()
        try:
            yield
        finally:
            self._instruments = self._current_instruments()  # surgery may have replaced them
            self._instruments.attach(signals=tiers.signals, slow=tiers.slow)

    def take_updates(self) -> tuple[int, bool]:
        """The number of updates since the last call, and whether one was dropped. Resets both."""
        self._steering.remove_rate_multiplier()
        self._results.restore_found_inf()  # if the step raised, its post-hook has not done so
        self._depth = 0
        taken = self.updates, self._dropped
        self.updates, self._dropped = 0, False
        return taken

    def _discard_plan(self) -> None:
        """Discard the plan and the instruments after an undo or redo: they belong to steps that were undone."""
        if self._instruments is not None:
            self._instruments.detach()
        self._instruments = self._tiers = self._next_tiers = self._planned = None

    def _current_instruments(self) -> InstrumentSet:
        self._begin()
        return self._layers.instruments(compare=True)

    def _pauses(self, ahead: int = 0) -> bool:
        return self._control.mode.pauses_after(self._progress.step + ahead, ahead=ahead)

    def _due(self, *, ahead: int = 0) -> Tiers | None:
        """What to measure at the coming step, or `ahead` steps later."""
        step, pace = self._progress.step + ahead, self._steering.pace
        return self._sampler.due(step, period_s=1 / pace if pace else None, pauses=self._pauses(ahead))

    def _pre_hook(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if optimizer is not self._optimizer:
            return None
        start_s = time.perf_counter()
        self._depth += 1
        if self._depth > 1:
            # A subclass that calls super().step() fires the hooks twice.
            if step_depth(optimizer) > 1:
                return None
            self._depth = 1  # a step that raised never reaches its post-hook
        if self._progress.fast_steps > 0 and len(args) == 1 and not kwargs and self._gradient_is_finite():
            self.rate = self._steering.rate.apply()
            self.fast_s = time.perf_counter() - start_s
            return None
        self._progress.fast_steps = 0
        if not self.planned:  # the first step of a user loop: the order of its layers is known only now
            self._instruments = self._current_instruments()
            self.plan()
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_update()
            return None

        def watched() -> Any:  # with a closure, the gradients exist only after it has run
            loss = closure()
            self._before_update()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _post_hook(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        if optimizer is not self._optimizer:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        self._depth = 0
        self._steering.rate.remove()
        if self._results.deferred:
            self._results.restore_found_inf()
        if self._dropped:
            return
        self.updates += 1
        if self._tiers is not None:
            self._take_reading(self._tiers)
            self._tiers = None

    def _gradient_is_finite(self) -> bool:
        """Whether the gradient is finite. On CUDA the device checks it, and this is True until the result arrives."""
        if self._results.deferred and self._results.check_gradient(self._optimizer):
            return True
        return "found_inf" not in vars(self._optimizer) and self._guard.gradient_is_finite()

    def _before_update(self) -> None:
        """Check the gradient. If it is not finite, drop the update; otherwise clip, measure and apply the rate."""
        step = self._progress.step
        self._guard.find_input_most()
        if not self._gradient_is_finite():
            if (overflow := found_inf(self._optimizer)) is not None and bool(overflow):
                self._dropped = True  # the GradScaler makes the fused optimizer skip this update
                return
            fault = self._guard.gradient_fault(step)
            if fault is not None and self._control.handle_fault(fault):
                self._drop_update()
                return
        # The cosine of the next step needs this gradient. If the run pauses now, the next step may be a single step,
        # which is always measured.
        remember = self._pauses() or (self._next_tiers is not None and self._next_tiers.signals)
        if self._tiers is not None or remember:
            self._instruments = self._instruments or self._current_instruments()
        if self._tiers is not None and self._tiers.rare and self._replay is not None:
            start_s = time.thread_time()
            assert self._instruments is not None
            self._instruments.detach()  # the replayed passes do not belong to the step
            self._replay.before_update()  # before clipping: the slope of the loss needs the unclipped gradient
            self._cost_s += time.thread_time() - start_s
        preclip = self._steering.clip(self._optimizer)
        # All other instruments measure the gradient after clipping, which is the one that the optimizer receives.
        if self._tiers is not None or remember:
            start_s = time.thread_time()
            assert self._instruments is not None
            if self._tiers is not None:
                self._measure_before_update(preclip)
            if remember:
                self._instruments.remember(step)
            self._cost_s += time.thread_time() - start_s
        self.rate = self._steering.rate.apply()

    def _drop_update(self) -> None:
        self._dropped = True
        # None, not zero: with a zero gradient, momentum and weight decay would still change the weights.
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _measure_before_update(self, preclip: Tensor | None) -> None:
        """Measure gradients and weights.

        All weights are measured if readings are at fixed steps, if the run is paced or pauses, and after an
        intervention. Otherwise a third of them is enough.
        """
        assert self._instruments is not None
        all_weights = self._sampler.fixed or self._steering.pace is not None or self._pauses()
        self._instruments.before_update(
            preclip,
            grad_scale=clipping.grad_scale(self._optimizer),
            step=self._progress.step,
            partial=not all_weights and self._steering.last_change_step <= self._last_reading,
        )

    def _take_reading(self, tiers: Tiers) -> None:
        assert self._instruments is not None
        start_s = time.thread_time()
        self._layers.report()
        progress, sampler = self._progress, self._sampler
        place = ReadingPlace(progress.segment, progress.step, self._layers.structure)
        sample: Deferred[Any] = self._instruments.after_update()

        def report(values: Sample | None, rare: dict[str, float]) -> None:
            if values is None:
                return  # the norms have been switched off
            self._last_reading = place.step
            place.write(progress.link, values, rare, cost=sampler.cost)

        if tiers.rare and self._replay is not None:
            both: Deferred[Any] = combine((sample, self._replay.after_update()))
            self._results.add_reading(both, lambda values: report(*values))
        else:
            self._results.add_reading(sample, lambda values: report(values, {}))
        sampler.spent(self._cost_s + time.thread_time() - start_s, tiers)
        self._cost_s = 0.0
