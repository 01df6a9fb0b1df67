"""An intervention is made whole or not at all: all that it may change is saved before, and put back when it fails."""

from __future__ import annotations

from tui_descent.training.steering.knobs.context import KnobContext
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import Snapshot


class Transaction:
    """Model, optimizer, schedule, batches, random numbers and knobs of a run when this was made.

    Gradients too: an intervention may come between two parts of one accumulated gradient. `before` is the snapshot
    taken for an undo; without one it is taken here.
    """

    def __init__(self, context: KnobContext, before: Snapshot | None = None) -> None:
        self._context = context
        self._before = before or Snapshot(context.holders(), segment=0, step=context.step)
        self._optimizer = context.optimizer
        held = [p for group in context.optimizer.param_groups for p in group["params"]]
        self._grads = [(p, p.grad) for p in {id(p): p for p in (*context.model.parameters(), *held)}.values()]
        self._random = RandomState().state()

    def roll_back(self) -> None:
        """Put it all back."""
        # What a user loop named was not touched by the intervention, and might not load.
        self._before.restore(user_state=False)
        for parameter, grad in self._grads:
            parameter.grad = grad
        self._context.version += 1
        self._context.change_optimizer(self._optimizer)
        RandomState().restore(self._random)
