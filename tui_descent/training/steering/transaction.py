"""Makes an intervention atomic: saves everything that it may change, and restores everything if it fails."""

from __future__ import annotations

from tui_descent.training.steering.knobs.context import KnobContext
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import Snapshot


class Transaction:
    """The state of a run before an intervention: a snapshot, the state of the random number generators, the gradients.

    Gradients are saved because an intervention may occur in the middle of gradient accumulation. `before` is the
    snapshot that was taken for an undo; if there is none, a snapshot is taken here.
    """

    def __init__(self, context: KnobContext, before: Snapshot | None = None) -> None:
        self._context = context
        self._before = before or Snapshot(context.holders(), segment=0, step=context.step)
        self._optimizer = context.optimizer
        optimized = [p for one in context.optimizers for p in one.parameters()]
        self._grads = [(p, p.grad) for p in {id(p): p for p in (*context.model.parameters(), *optimized)}.values()]
        self._random = RandomState().state()

    def roll_back(self) -> None:
        """Restore everything."""
        # Objects that a user loop passed as `state=` are skipped: the intervention did not change them, and their
        # `load_state_dict` might raise.
        self._before.restore(user_state=False)
        for parameter, grad in self._grads:
            parameter.grad = grad
        self._context.version += 1
        self._context.change_optimizer(self._optimizer)
        RandomState().restore(self._random)
