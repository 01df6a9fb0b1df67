"""What happens around the optimizer's own step: guard, sample, the turned rate put on and taken off.

The hooks are the only hold on a loop: gradients exist in the pre-hook whatever the loop's order of `zero_grad`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.norms import Norms
from tui_descent.instruments.sampler import Sampler
from tui_descent.training.guard import Fault, Guard
from tui_descent.training.steering import Steering

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Reading = tuple[float, list[list[float]]]


class Updates:
    """The hooks of one optimizer.

    `first` is called once, when the layers are known; `fault` is told of gradients that are no numbers and says
    whether the update is to be dropped.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        steering: Steering,
        sampler: Sampler,
        guard: Guard,
        step: Callable[[], int],
        first: Callable[[], Norms],
        fault: Callable[[Fault], bool],
    ) -> None:
        self.rate = math.nan
        self._optimizer = optimizer
        self._steering = steering
        self._sampler = sampler
        self._guard = guard
        self._step = step
        self._first = first
        self._fault = fault
        self._norms: Norms | None = None
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._made = 0
        self._dropped = False
        self._sampling = False
        self._cost_s = 0.0
        self._reading: Reading | None = None

    def attach(self) -> None:
        """Hook on."""
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    def detach(self) -> None:
        """Hook off, the optimizer's rates as its owner set them."""
        self._steering.rate.take_off()
        for handle in self._handles:
            handle.remove()

    def take(self) -> tuple[int, bool, Reading | None]:
        """Since the last call: updates made, whether one was dropped, the reading if one was due."""
        self._steering.rate.take_off()  # a step that raised never came to its post-hook
        self._depth = 0
        taken = self._made, self._dropped, self._reading
        self._made, self._dropped, self._reading = 0, False, None
        return taken

    def _before(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        self._depth += 1
        if self._depth > 1:  # a subclass that calls super().step() fires the hooks twice
            return None
        if self._norms is None:
            self._norms = self._first()
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._examine(self._norms)
            return None

        def watched() -> Any:  # the gradients exist only once the closure has run
            loss = closure()
            assert self._norms is not None
            self._examine(self._norms)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _examine(self, norms: Norms) -> None:
        step = self._step()
        bad = self._guard.bad_gradient(step)
        if bad is not None and self._fault(bad):
            # None, not zero: only a gradient that is not there leaves weights and optimizer state as they are.
            self._dropped = True
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return
        pace = self._steering.pace
        self._sampling = self._sampler.due(step, period_s=1 / pace if pace else None)
        if self._sampling:
            start_s = time.perf_counter()
            norms.before_update()
            self._cost_s = time.perf_counter() - start_s
        self.rate = self._steering.rate.value
        self._steering.rate.put_on()

    def _after(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._depth = 0
        self._steering.rate.take_off()
        if self._dropped:
            return
        self._made += 1
        if self._sampling:
            self._sampling = False
            assert self._norms is not None
            start_s = time.perf_counter()
            self._reading = self._norms.after_update()
            self._sampler.spent(self._cost_s + time.perf_counter() - start_s)
