"""The short way of a step of which nothing is asked: one look at a gradient, one record.

Few lines and few objects, since each is read from memory anew: the training's own work has pushed them out of the
cache, and the same work spread over a dozen objects takes three times as long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.training.control import Control
from tui_descent.training.guard import Guard
from tui_descent.training.late import Late
from tui_descent.training.records import Place

# A stretch ends where its steps turn out to take longer than expected.
LONGEST_S = 0.4
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
PreHook = Callable[[torch.optim.Optimizer, Args, Kwargs], tuple[Args, Kwargs] | None]
PostHook = Callable[[torch.optim.Optimizer, Args, Kwargs], None]


class Lane:
    """Of one run: `before` and `after` are the optimizer's hooks, `step` ends the step; `over` ends a stretch.

    Each goes the long way where `left` is 0 or anything is out of the ordinary: hooks to those that `around` was given,
    `step` by saying so. `made` counts updates since the last step's end, by either way; `rate` is the last one's.
    """

    __slots__ = (
        "_after_long",
        "_before_long",
        "_control",
        "_entered",
        "_frozen",
        "_gone",
        "_guard",
        "_looked_at",
        "_losses",
        "_over",
        "_ring",
        "_schedule",
        "_turned",
        "_until_s",
        "left",
        "made",
        "open",
        "optimizer",
        "own_s",
        "rate",
        "start_s",
        "used",
    )

    def __init__(
        self, control: Control, guard: Guard, optimizer: torch.optim.Optimizer, *, over: Callable[[], None]
    ) -> None:
        self.optimizer = optimizer
        self.left = self.made = 0
        self.open = False  # within an update that goes this way
        self.rate = math.nan
        self.own_s = 0.0  # what this way took, by its own clock
        self.used = False  # since the last plan
        self._control, self._guard, self._over = control, guard, over
        self._looked_at: nn.Parameter | None = None
        self._frozen: nn.Parameter | None = None
        self.start_s = time.perf_counter()  # the run's
        self._entered = self._gone = 0

    def around(self, before: PreHook, after: PostHook) -> None:
        """The long way's hooks."""
        self._before_long, self._after_long = before, after

    def place(self, now_s: float) -> Place:
        """Of the update just made, whose step ends now."""
        control = self._control
        return Place(segment=control.segment, step=control.step, rate=self.rate, time_s=now_s - self.start_s)

    def enter(self, steps: int) -> None:
        """From the next step on so many may go this way."""
        self.leave()
        control = self._control
        self._looked_at, self._frozen = self._guard.looked_at, self._guard.frozen
        if steps <= 0 or control.link is None or control.link.ring is None:
            return
        self.left = self._entered = steps
        self.used = True
        ground = control.steering.ground
        self._ring, self._losses, self._turned = control.link.ring, ground.losses, control.steering.turned
        self._schedule = ground.setup.schedule if ground.setup is not None else None
        self._until_s = time.perf_counter() + LONGEST_S

    def leave(self) -> None:
        """What comes next goes the long way."""
        self._gone += self._entered - self.left
        self.left = self._entered = 0

    def gone(self) -> int:
        """Steps that went this way since the last call."""
        gone = self._gone + self._entered - self.left
        self._gone, self._entered = 0, self.left
        return gone

    def before(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """The optimizer's pre-hook."""
        if self.left > 0 and optimizer is self.optimizer and len(args) == 1 and not kwargs and not self.open:
            start_s = time.perf_counter()
            grad = None if self._looked_at is None else self._looked_at.grad
            thawed = self._frozen is not None and self._frozen.grad is not None
            # Of a GradScaler a fused optimizer is told by an attribute.
            if grad is not None and not thawed and "found_inf" not in optimizer.__dict__:
                total = grad.sum().item()
                if total - total == 0.0:  # finite
                    self._opens(optimizer, start_s)
                    return None
        return self._before_long(optimizer, args, kwargs)

    def after(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        """The optimizer's post-hook."""
        if self.open and optimizer is self.optimizer:
            self.open = False
            self.made += 1
            if self._turned:
                self._control.steering.rate.take_off()
        else:
            self._after_long(optimizer, args, kwargs)

    def step(self, loss: Tensor | float) -> bool:
        """Record a step. False, with nothing done, where something else is to be done about it."""
        start_s = time.perf_counter()
        value = loss.item() if isinstance(loss, Tensor) else float(loss)
        if self.made != 1 or value - value != 0.0:  # not finite
            return False
        self.made = 0
        self.left -= 1
        control = self._control
        self._ring.write_step(control.step, value, self.rate, start_s - self.start_s, control.segment, False)
        control.step += 1
        self._losses.append(value)
        if self._schedule is not None:
            self._schedule.step(value)
        self.own_s += time.perf_counter() - start_s
        if self.left == 0 or self._ring.flagged() or start_s > self._until_s:
            self._over()
        return True

    def _opens(self, optimizer: torch.optim.Optimizer, start_s: float) -> None:
        self.open = True
        if self._turned:
            turned = self._control.steering.rate
            self.rate = turned.value
            turned.put_on()
        else:
            rate = optimizer.param_groups[0]["lr"]
            self.rate = rate if type(rate) is float else float(rate)
        self.own_s += time.perf_counter() - start_s


class LateLane(Lane):
    """The same where nothing is known at once: neither the gradient nor the loss is waited for."""

    __slots__ = ("_late",)

    def __init__(
        self,
        control: Control,
        guard: Guard,
        optimizer: torch.optim.Optimizer,
        *,
        over: Callable[[], None],
        late: Late,
    ) -> None:
        super().__init__(control, guard, optimizer, over=over)
        self._late = late

    def enter(self, steps: int) -> None:
        """From the next step on so many may go this way; none where the next rate hangs on a step's loss."""
        super().enter(0 if self._control.steering.needs_loss else steps)

    def before(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """The optimizer's pre-hook."""
        if self.left > 0 and optimizer is self.optimizer and len(args) == 1 and not kwargs and not self.open:
            start_s = time.perf_counter()
            if self._late.look(optimizer):
                self._opens(optimizer, start_s)
                return None
        return self._before_long(optimizer, args, kwargs)

    def after(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        """The optimizer's post-hook."""
        if self.open and optimizer is self.optimizer:
            self._late.let_go()
        super().after(optimizer, args, kwargs)

    def step(self, loss: Tensor | float) -> bool:
        """Hand a step on. False, with nothing done, where something else is to be done about it."""
        start_s = time.perf_counter()
        if self.made != 1:
            return False
        self.made = 0
        self.left -= 1
        control = self._control
        self._late.step(loss, start_s, made=True, place=self.place(start_s))
        control.step += 1
        control.steering.moved(math.nan)
        self._late.collect()
        self.own_s += time.perf_counter() - start_s
        if self.left == 0 or control.stood or self._ring.flagged() or start_s > self._until_s:
            self._over()
        return True
