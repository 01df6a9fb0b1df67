"""Notices mistakes in how a loop calls `run.step`, and reports each once in the event log."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tui_descent.training.progress import Progress

# At most this many nodes of a loss's graph are examined.
MOST_NODES = 100


class Misuse:
    """Counts the calls of `run.step` of one run. It never changes the loop."""

    def __init__(self, model: nn.Module, progress: Progress) -> None:
        self._model, self._progress = model, progress
        self._calls = 0  # calls of `run.step`
        self._may_be_early = False  # whether the first `run.step` may have come before `optimizer.step`

    def step(self, loss: object, updates: int, *, skipped: bool) -> None:
        """Called at `run.step(loss)`. `updates` is the number of updates since the last call. `skipped` says that an
        update was dropped or skipped.
        """
        self._calls += 1
        if updates or skipped:
            if self._may_be_early and self._calls == 2 and updates:
                self._progress.note(
                    "run.step() comes before optimizer.step(): each update is shown with the next one's loss"
                )
        elif self._calls == 1:
            no_gradients = all(p.grad is None for p in self._model.parameters())
            self._may_be_early = no_gradients and not _was_differentiated(loss)

    def finish(self, updates: int) -> None:
        """Called when the loop is over. `updates` is the number of updates after the last `run.step`."""
        if updates and not self._calls:
            plural = "s" if updates > 1 else ""
            self._progress.note(f"{updates} update{plural}, but run.step(loss) was never called: nothing was recorded")


def _was_differentiated(loss: object) -> bool:
    """Whether `backward()` has freed a part of the loss's graph. False if that cannot be determined."""
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
