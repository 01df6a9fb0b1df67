"""The hooks around the optimizer's step: check the gradient, take readings, apply the turned learning rate.

Gradients exist in the pre-hook, whatever the loop's order of `zero_grad`.
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

from tui_descent.instruments.deferred import Deferred, together
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
from tui_descent.training.watch.losses import found_inf
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.reading_writer import ReadingPlace
from tui_descent.training.watch.results import Results

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class OptimizerHooks:
    """The hooks of one run. `begin` is called before the first reading, once the net's layers can be known.

    Whether a step is measured is planned one step ahead, since a cosine needs the gradient of the step before.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        progress: Progress,
        steering: Steering,
        control: Control,
        results: Results,
        layers: LayerList,
        guard: NanGuard,
        sampler: Sampler,
        again: SameBatch | None,
        begin: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._progress, self._steering, self._control = progress, steering, control
        self._results, self._layers, self._guard, self._sampler = results, layers, guard, sampler
        self._again, self._begin = again, begin
        self.made = 0  # updates since `take`
        self.rate = math.nan  # of the last update
        self.own_s = 0.0  # what watching took of the update under way, where nothing was due
        self._dropped = False
        self._instruments: InstrumentSet | None = None
        self._handles: list[RemovableHandle] = []
        self._hooked: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._depth = 0
        self._planned: int | None = None  # the step that `_now` is about
        self._rewinds = 0
        self._now: Tiers | None = None
        self._next: Tiers | None = None
        self._cost_s = 0.0
        self._last_reading = -1  # the last step whose reading was reported

    def attach(self) -> None:
        """Hook on."""
        self._hooked.add(self._optimizer)
        self._handles += [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer makes the updates from here on."""
        self._optimizer = optimizer
        self._progress.fast_steps = 0
        # Hooks stay on the old one: a run may be held inside its step, while torch iterates over them.
        if self._handles and optimizer not in self._hooked:
            self.attach()

    def detach(self) -> None:
        """Hook off, and leave the optimizer's rates as its owner set them."""
        self._steering.remove_rate_multiplier()
        self._results.let_go()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        if self._instruments is not None:
            self._instruments.detach()

    @property
    def measures(self) -> bool:
        """Whether the step under way or the next is to be measured."""
        return self._now is not None or self._next is not None

    @property
    def planned(self) -> bool:
        """Whether the coming step was planned, as the run stands now."""
        return self._planned is not None and self._rewinds == self._progress.rewinds

    def plan(self) -> None:
        """Before a forward pass: decide whether its step and the one after it are measured; attach the instruments."""
        step = self._progress.step
        if self._rewinds != self._progress.rewinds:
            self._rewinds = self._progress.rewinds
            self._forget()
        if self._planned != step:  # otherwise the last one was dropped, and the plan holds
            if self._now is not None and self._instruments is not None:
                self._instruments.detach()  # those of one that was dropped
            self._now = self._decide() if self._planned is None else self._next
            self._next = self._decide(ahead=1)
            self._planned = step
        if self._now is None and self._pauses():
            self._now = self._decide()
        if self._now is not None:
            start_s = time.thread_time()
            self._instruments = self._current_instruments()
            self._instruments.attach(signals=self._now.signals, slow=self._now.slow)
            self._cost_s += time.thread_time() - start_s

    @contextmanager
    def muted(self) -> Iterator[None]:
        """No instrument measures inside: for passes that are not the step's own."""
        now = self._now if self._planned == self._progress.step else None
        if now is None or self._instruments is None:
            yield
            return
        self._instruments.detach()
        try:
            yield
        finally:
            self._instruments = self._current_instruments()  # others, after surgery
            self._instruments.attach(signals=now.signals, slow=now.slow)

    def take(self) -> tuple[int, bool]:
        """Since the last call: updates made, and whether one was dropped."""
        self._steering.remove_rate_multiplier()
        self._results.let_go()  # of a step that raised
        self._depth = 0
        taken = self.made, self._dropped
        self.made, self._dropped = 0, False
        return taken

    def _forget(self) -> None:
        """The run is at another place: what was planned and measured is of steps that were undone."""
        if self._instruments is not None:
            self._instruments.detach()
        self._instruments = self._now = self._next = self._planned = None

    def _current_instruments(self) -> InstrumentSet:
        self._begin()
        return self._layers.instruments(look=True)

    def _pauses(self, ahead: int = 0) -> bool:
        return self._control.mode.pauses_after(self._progress.step + ahead, ahead=ahead)

    def _decide(self, *, ahead: int = 0) -> Tiers | None:
        """What to measure in the coming step, or `ahead` steps later."""
        step, pace = self._progress.step + ahead, self._steering.pace
        return self._sampler.due(step, period_s=1 / pace if pace else None, pauses=self._pauses(ahead))

    def _before(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """The optimizer's pre-hook."""
        if optimizer is not self._optimizer:
            return None
        start_s = time.perf_counter()
        self._depth += 1
        if self._depth > 1:
            # A subclass that calls super().step() fires the hooks twice.
            if step_depth(optimizer) > 1:
                return None
            self._depth = 1  # a step that raised never came to its post-hook
        if self._progress.fast_steps > 0 and len(args) == 1 and not kwargs and self._gradient_is_fine():
            self._apply_rate()
            self.own_s = time.perf_counter() - start_s
            return None
        self._progress.fast_steps = 0
        if not self.planned:  # the first step of a user loop: its layers are known only now
            self._instruments = self._current_instruments()
            self.plan()
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._examine()
            return None

        def watched() -> Any:  # the gradients exist only once the closure has run
            loss = closure()
            self._examine()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        """The optimizer's post-hook."""
        if optimizer is not self._optimizer:
            return
        self._depth -= 1
        if self._depth > 0:
            return
        self._depth = 0
        self._steering.rate.remove()
        self._results.let_go()
        if self._dropped:
            return
        self.made += 1
        if self._now is not None:
            self._take_reading(self._now)
            self._now = None

    def _gradient_is_fine(self) -> bool:
        """Whether the gradient is finite as far as is known now; on a device it is checked there."""
        if self._results.look(self._optimizer):
            return True
        return found_inf(self._optimizer) is None and self._guard.fine()

    def _examine(self) -> None:
        """Check the gradient, drop the update if it is bad; otherwise clip, measure, apply the rate."""
        step = self._progress.step
        self._guard.refresh()
        if not self._gradient_is_fine():
            if (overflow := found_inf(self._optimizer)) is not None and bool(overflow):
                self._dropped = True  # by a GradScaler, whose fused step does nothing now
                return
            bad = self._guard.bad_gradient(step)
            if bad is not None and self._control.handle_fault(bad):
                self._drop_update()
                return
        # Who makes single steps will want a cosine of the next.
        remember = self._pauses() or (self._next is not None and self._next.signals)
        if self._now is not None or remember:
            self._instruments = self._instruments or self._current_instruments()
        if self._now is not None and self._now.rare and self._again is not None:
            start_s = time.thread_time()
            assert self._instruments is not None
            self._instruments.detach()  # from passes that are not the step's own
            self._again.before_update()  # before the clip: a slope of the loss is of the gradient that the loss gave
            self._cost_s += time.thread_time() - start_s
        preclip = self._steering.clip(self._optimizer)
        # After it: all other readings are of the gradient as the optimizer receives it.
        if self._now is not None or remember:
            start_s = time.thread_time()
            assert self._instruments is not None
            if self._now is not None:
                self._measure_before_update(preclip)
            if remember:
                self._instruments.remember(step)
            self._cost_s += time.thread_time() - start_s
        self._apply_rate()

    def _drop_update(self) -> None:
        self._dropped = True
        # None, not zero: only a missing gradient leaves weights and optimizer state as they are.
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _apply_rate(self) -> None:
        self.rate = self._steering.rate.value
        self._steering.rate.apply()

    def _measure_before_update(self, preclip: Tensor | None) -> None:
        """All weights where that was asked for, costs no time, or follows a turn; otherwise a part of them."""
        assert self._instruments is not None
        whole = self._sampler.fixed or self._steering.pace is not None or self._pauses()
        self._instruments.before_update(
            preclip,
            grad_scale=clipping.grad_scale(self._optimizer),
            step=self._progress.step,
            partly=not whole and self._steering.last_change_step <= self._last_reading,
        )

    def _take_reading(self, tiers: Tiers) -> None:
        assert self._instruments is not None
        start_s = time.thread_time()
        self._layers.report()
        progress, cost = self._progress, self._sampler
        place = ReadingPlace(progress.segment, progress.step, self._layers.structure)
        sample: Deferred[Any] = self._instruments.after_update()

        def report(found: Sample, rare: dict[str, float]) -> None:
            self._last_reading = place.step
            place.write(progress.link, found, rare, cost=cost.cost)

        if tiers.rare and self._again is not None:
            both: Deferred[Any] = together((sample, self._again.after_update()))
            self._results.add_reading(both, lambda found: report(*found))
        else:
            self._results.add_reading(sample, lambda found: report(found, {}))
        self._sampler.spent(self._cost_s + time.thread_time() - start_s, tiers)
        self._cost_s = 0.0
