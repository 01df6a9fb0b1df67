"""A turn as one piece: everything that it may change, to be put back exactly when it fails half-way."""

from __future__ import annotations

import torch

from tui_descent.training.knobs.ground import Ground
from tui_descent.training.undo.snapshot import Snapshot


class Whole:
    """A run's net, optimizer, schedule, batches' size, random numbers and knobs when this was made.

    Every object stays the one it is, gradients too: a turn may come between two parts of one accumulated gradient.
    `before` is the snapshot taken for an undo; without one it is taken here, as large as net and optimizer.
    """

    def __init__(self, ground: Ground, before: Snapshot | None = None) -> None:
        self._ground = ground
        self._before = before or Snapshot(ground.holders(), segment=0, step=ground.step)
        self._optimizer = ground.optimizer
        held = [p for group in ground.optimizer.param_groups for p in group["params"]]
        self._grads = [(p, p.grad) for p in {id(p): p for p in (*ground.model.parameters(), *held)}.values()]
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def put_back(self) -> None:
        """All as it was."""
        # What the loop itself named cannot have been touched by a turn, and might refuse.
        self._before.restore(user_state=False)
        for parameter, grad in self._grads:
            parameter.grad = grad
        self._ground.version += 1
        self._ground.change_optimizer(self._optimizer)
        torch.set_rng_state(self._random)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
