"""Notices optimizers that a loop steps besides the watched ones."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tui_descent.training.steering.steering import Steering


class OtherOptimizers:
    """The other optimizers that were stepped between `listen` and `ignore`, through torch's global optimizer hook."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._handle: RemovableHandle | None = None
        self._last: weakref.ref[torch.optim.Optimizer] | None = None
        self._held: set[int] = set()  # the ids of the parameters of other optimizers

    def listen(self) -> None:
        """Start listening."""
        if self._handle is None:
            self._handle = register_optimizer_step_pre_hook(self._stepped)

    def ignore(self) -> None:
        """Stop listening."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def stepped(self) -> torch.optim.Optimizer | None:
        """The other optimizer that was stepped last, if it still exists."""
        return self._last() if self._last is not None else None

    def holds(self, parameter: Tensor) -> bool:
        """Whether another optimizer that was stepped has this parameter."""
        return id(parameter) in self._held

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not any(optimizer is one.optimizer for one in self._steering.optimizers):
            if self._last is None or self._last() is not optimizer:
                self._held |= {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._last = weakref.ref(optimizer)
