"""Notices slips in how a loop uses `watch()`, and says them once in the event log."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer

# So many losses without an update are reported, unless the loop accumulates gradients over nearly as many batches.
MANY_LOSSES = 20
MANY_ACCUMULATIONS = 10
# At most this many parts of a loss's graph are looked at.
MOST_NODES = 100


class Misuse:
    """What one run knows about its loop. Nothing here changes the loop."""

    def __init__(self, model: nn.Module, optimizers: Sequence[SteeredOptimizer], progress: Progress) -> None:
        self._model, self._optimizers, self._progress = model, optimizers, progress
        self._calls = 0  # calls of `run.step`
        self._losses = self._most_losses = 0  # losses since the last update, and the most so far
        self._updated = False  # whether an update was ever seen
        self._may_be_early = False  # whether the first `run.step` may have come before `optimizer.step`
        self._handle: RemovableHandle | None = None
        self._other: weakref.ref[torch.optim.Optimizer] | None = None  # another optimizer that was stepped

    def listen(self) -> None:
        """Notice which optimizers are stepped, until the watched one is."""
        self._handle = register_optimizer_step_pre_hook(self._stepped)

    def ignore(self) -> None:
        """Stop noticing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def begin(self, layers: Sequence[WatchedLayer]) -> None:
        """Compare the optimizers' parameters with those of the layers."""
        held = {id(p) for one in self._optimizers for p in one.parameters()}
        own = {id(p) for p in self._model.parameters()}
        absent = [w.layer.name for w in layers if w.weight.requires_grad and id(w.weight) not in held]
        foreign = len(held - own)
        if not held or not absent:
            return
        which = "the optimizers have" if len(self._optimizers) > 1 else "the optimizer has"
        if not held & own:
            self._progress.note(f"{which} none of the model's parameters: it was made for another net, or a copy")
            return
        one = len(absent) == 1
        what = f"{absent[0]} is" if one else f"{len(absent)} of {len(layers)} layers are"
        if foreign:
            plural = "s that are" if foreign > 1 else " that is"
            self._progress.note(f"{what} not in the optimizer, which holds {foreign} tensor{plural} not this net's")
        else:
            names = "" if one else f": {', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}"
            self._progress.note(f"{what} not in the optimizer and will not be trained{names}", level="info")

    def step(self, loss: object, updates: int, *, skipped: bool) -> None:
        """`run.step(loss)` was called, after so many updates. `skipped`: an update was dropped or skipped."""
        self._calls += 1
        if updates or skipped:
            if self._may_be_early and self._calls == 2 and updates:
                self._progress.note(
                    "run.step() comes before optimizer.step(): each update is shown with the next one's loss"
                )
            self._updated = True
            self._most_losses, self._losses = max(self._most_losses, self._losses), 0
            self.ignore()
            return
        self._losses += 1
        if self._calls == 1:
            no_gradients = all(p.grad is None for p in self._model.parameters())
            self._may_be_early = no_gradients and not _was_differentiated(loss)
        if self._losses == max(MANY_LOSSES, MANY_ACCUMULATIONS * self._most_losses):
            self._progress.note(self._no_update())
            self.ignore()

    def finish(self, updates: int) -> None:
        """The loop is over, after so many updates that no `run.step` followed."""
        self.ignore()
        if updates and not self._calls:
            plural = "s" if updates > 1 else ""
            self._progress.note(f"{updates} update{plural}, but run.step(loss) was never called: nothing was recorded")

    def _no_update(self) -> str:
        names = ", ".join(type(one.optimizer).__name__ for one in self._optimizers)
        since = " since the last update" if self._updated else ""
        text = f"{self._losses} losses reported{since}, no step() seen on the watched {names}"
        other = self._other() if self._other is not None else None
        if other is None:
            return text
        held = {id(p) for one in self._optimizers for p in one.parameters()}
        shared = any(id(p) in held for group in other.param_groups for p in group["params"])
        kind = type(other).__name__
        return f"{text}; the loop steps another {kind}{', which has its weights' if shared else ''}: watch that one"

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not any(optimizer is one.optimizer for one in self._optimizers):
            self._other = weakref.ref(optimizer)


def _was_differentiated(loss: object) -> bool:
    """Whether `backward()` has freed a part of the loss's graph. False if this cannot be known."""
    nodes: list[Any] = [loss.grad_fn] if isinstance(loss, Tensor) and loss.grad_fn is not None else []
    for _ in range(MOST_NODES):
        if not nodes:
            return False
        node = nodes.pop(0)
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    getattr(node, name)
                except RuntimeError:
                    return True
        nodes += [before for before, _ in node.next_functions if before is not None]
    return False
