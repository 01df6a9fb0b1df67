"""What happens around the optimizer's own step: guard, sample, the turned rate put on and taken off.

The hooks are the only hold on a loop: gradients exist in the pre-hook whatever the loop's order of `zero_grad`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.deferred import Deferred, together
from tui_descent.instruments.measuring import Measuring, Sample
from tui_descent.instruments.samebatch import SameBatch
from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers
from tui_descent.training import clipping
from tui_descent.training.delegate import steps_under_way
from tui_descent.training.guard import Fault, Guard
from tui_descent.training.lane import Args, Kwargs, Lane
from tui_descent.training.steering import Steering
from tui_descent.training.telling import Telling
from tui_descent.training.verdict import found_inf


class Updates:
    """The hooks of one optimizer.

    `measuring` gives the instruments of the net as it stands, made anew after surgery; `fault` is told of gradients
    that are no numbers and says whether the update is to be dropped. `pauses`: whether the run stands behind the coming
    update or the one so many ahead, which is then measured within a budget: whoever makes single steps looks at each,
    and at what a run has come to. `telling` is given the update's reading, for what `reader` gives for it. Updates of
    which nothing is asked go through `lane` alone.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        steering: Steering,
        sampler: Sampler,
        guard: Guard,
        step: Callable[[], int],
        pauses: Callable[[int], bool],
        measuring: Callable[[], Measuring],
        fault: Callable[[Fault], bool],
        lane: Lane,
        telling: Telling,
        reader: Callable[[], Callable[[Sample, dict[str, float]], None]],
        again: SameBatch | None = None,
    ) -> None:
        self._lane = lane
        self._telling = telling
        self._reader = reader
        self._again = again
        self._optimizer = optimizer
        self._steering = steering
        self._sampler = sampler
        self._guard = guard
        self._step = step
        self._pauses = pauses
        self._measuring = measuring
        self._fault = fault
        self._instruments: Measuring | None = None
        self._handles: list[RemovableHandle] = []
        self._hooked: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._depth = 0
        self._dropped = False
        self._planned: int | None = None
        self._now: Tiers | None = None
        self._next: Tiers | None = None
        self._cost_s = 0.0
        self._read_at = -1  # the last update whose reading is known
        lane.around(self._before, self._after)

    def attach(self) -> None:
        """Hook on."""
        self._hooked.add(self._optimizer)
        self._handles += [
            self._optimizer.register_step_pre_hook(self._lane.before),
            self._optimizer.register_step_post_hook(self._lane.after),
        ]

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer makes the updates from here on."""
        self._optimizer = self._lane.optimizer = optimizer
        self._lane.leave()
        # Hooks stay where they are and heed one optimizer: a run may be held within a step, whose hooks torch is just
        # going through.
        if self._handles and optimizer not in self._hooked:
            self.attach()

    def detach(self) -> None:
        """Hook off, the optimizer's rates as its owner set them."""
        self._steering.heal()
        self._telling.let_go()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        if self._instruments is not None:
            self._instruments.detach()

    def plan(self) -> None:
        """Before a forward pass: whether its step and the one after it are measured; attach what has to listen."""
        step = self._step()
        if self._lane.used:
            self._lane.used = False
            self._planned = step - 1  # what went there was planned to be read of no more than the steps before
        if self._planned != step:  # otherwise the last one was dropped, and the plan stands
            if self._now is not None and self._instruments is not None:
                self._instruments.detach()  # those of one that was dropped
            self._now = self._next if self._planned == step - 1 else self._decide()
            # One ahead, since a cosine needs the gradient of the step before.
            self._next = self._decide(ahead=1)
            self._planned = step
        if self._now is None and self._pauses(0):
            self._now = self._decide()
        if self._now is not None:
            start_s = time.thread_time()
            self._instruments = self._measuring()
            self._instruments.attach(signals=self._now.signals, slow=self._now.slow)
            self._cost_s += time.thread_time() - start_s

    def forget(self) -> None:
        """The run stands elsewhere: what was planned and heard is of another stretch."""
        if self._instruments is not None:
            self._instruments.detach()
        self._instruments = self._now = self._next = self._planned = None
        self._lane.used = False

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Nothing listens inside: to passes that are not the step's own."""
        now = self._now if self._planned == self._step() else None
        if now is None or self._instruments is None:
            yield
            return
        self._instruments.detach()
        try:
            yield
        finally:
            self._instruments = self._measuring()  # others, where surgery was done inside
            self._instruments.attach(signals=now.signals, slow=now.slow)

    def _decide(self, *, ahead: int = 0) -> Tiers | None:
        """What is read of the coming update, or of the one so many updates later."""
        pace = self._steering.pace
        return self._sampler.due(self._step() + ahead, period_s=1 / pace if pace else None, pauses=self._pauses(ahead))

    @property
    def reads(self) -> bool:
        """Whether the step under way or the next is to be measured."""
        return self._now is not None or self._next is not None

    def take(self) -> tuple[int, bool]:
        """Since the last call: updates made, whether one was dropped."""
        self._steering.heal()
        self._telling.let_go()  # of a step that raised
        self._depth = 0
        taken = self._lane.made, self._dropped
        self._lane.made, self._lane.open, self._dropped = 0, False, False
        return taken

    @property
    def asks(self) -> bool:
        """Whether this step or the next is to be measured, or either is not planned yet."""
        return self.reads or self._planned is None

    def _before(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if optimizer is not self._optimizer:
            return None
        self._lane.leave()
        if self._lane.open:
            self._lane.open, self._depth = False, 1
        if (
            self._depth > 0 and steps_under_way(optimizer) > 1
        ):  # a subclass that calls super().step() fires the hooks twice
            self._depth += 1
            return None
        self._depth = 1  # a step that raised never came to its post-hook
        if self._planned is None:  # a foreign net's first step: its layers are known only now
            self._instruments = self._measuring()
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

    def _fine(self) -> bool:
        """Whether there is nothing to say of the gradients now."""
        if self._telling.look(self._optimizer):
            return True
        return found_inf(self._optimizer) is None and self._guard.fine()

    def _examine(self) -> None:
        bad = None
        if not self._fine():
            if (overflow := found_inf(self._optimizer)) is not None and bool(overflow):
                self._dropped = True  # by a GradScaler, whose fused step does nothing now
                return
            bad = self._guard.bad_gradient(self._step())
        if bad is not None and self._fault(bad):
            # None, not zero: only a gradient that is not there leaves weights and optimizer state as they are.
            self._dropped = True
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return
        # Who makes single steps makes another.
        remember = self._pauses(0) or (self._next is not None and self._next.signals)
        if self._now is not None or remember:
            self._instruments = self._instruments or self._measuring()
        if self._now is not None and self._now.rare and self._again is not None:
            start_s = time.thread_time()
            assert self._instruments is not None
            self._instruments.detach()  # from passes that are not the step's own
            self._again.before_update()  # before the clip: a slope of the loss is of the gradient that the loss gave
            self._cost_s += time.thread_time() - start_s
        preclip = self._steering.clip(self._optimizer)
        # Behind it: all other readings are of the gradient as the optimizer receives it.
        if self._now is not None or remember:
            start_s = time.thread_time()
            assert self._instruments is not None
            if self._now is not None:
                self._take_hold(preclip)
            if remember:
                self._instruments.remember(self._step())
            self._cost_s += time.thread_time() - start_s
        rate = self._steering.rate
        self._lane.rate = rate.value
        if rate.multiplier != 1.0:
            rate.put_on()

    def _take_hold(self, preclip: Tensor | None) -> None:
        """Of gradients and weights: all of them where it was asked for or costs nobody anything, and behind a turn."""
        assert self._instruments is not None
        asked = self._sampler.fixed or self._steering.pace is not None or self._pauses(0)
        self._instruments.before_update(
            preclip,
            grad_scale=clipping.grad_scale(self._optimizer),
            step=self._step(),
            partly=not asked and self._steering.turned_at <= self._read_at,
        )

    def _after(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        self._depth -= 1
        if self._depth > 0 or optimizer is not self._optimizer:
            return
        self._depth = 0
        self._steering.rate.take_off()
        self._telling.let_go()
        if self._dropped:
            return
        self._lane.made += 1
        now, self._now = self._now, None
        if now is not None:
            assert self._instruments is not None
            start_s = time.thread_time()
            sample: Deferred[Any] = self._instruments.after_update()
            tell, step = self._reader(), self._step()

            def told(found: Sample, rare: dict[str, float]) -> None:
                self._read_at = step
                tell(found, rare)

            if now.rare and self._again is not None:
                both: Deferred[Any] = together((sample, self._again.after_update()))
                self._telling.read(both, lambda found: told(*found))
            else:
                self._telling.read(sample, lambda found: told(found, {}))
            cost_s = self._cost_s + time.thread_time() - start_s
            self._sampler.spent(cost_s, now)
            self._cost_s = 0.0
