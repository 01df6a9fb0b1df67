"""The loss along the update that comes next: L(θ + s·d), d being where the optimizer would go now, not the gradient."""

from __future__ import annotations

import math

import torch

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering

# The point itself, then doublings around the step's own length, s = 1.
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def look_ahead(steering: Steering, setup: Setup) -> list[float]:
    """The next batch's loss at θ + s·d over `SCALES`; empty where d is 0.

    d = θ′ − θ of one real update: momentum, preconditioning, decay, clip and the turned rate are in it. Every forward
    pass draws the same random numbers, so that dropout drops the same units. It makes the update and leaves weights,
    optimizer and batches wherever that led: the caller puts them back. Nothing may be hooked onto the optimizer.
    Raises `ValueError` where the loss or d is no number.
    """
    model, optimizer = setup.model, setup.optimizer
    with undisturbed(model):
        loss = setup.loss()
        if not math.isfinite(loss.item()):
            raise ValueError(f"the next batch's loss is {loss.item()}; u goes back to the last good state")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    start = [p.detach().clone() for p in weights]
    steering.clip(optimizer)
    steering.rate.apply()
    optimizer.step()
    steering.rate.remove()
    with torch.no_grad():
        moves = [p - s for p, s in zip(weights, start, strict=True)]
        if not all(bool(d.isfinite().all()) for d in moves):
            raise ValueError("the next update is no number; a smaller rate or u helps")
        if not any(bool(d.any()) for d in moves):
            return []
        found = []
        for scale in SCALES:
            for p, s, d in zip(weights, start, moves, strict=True):
                torch.add(s, d, alpha=scale, out=p)
            with undisturbed(model):
                found.append(setup.forward_again().item())
    return found
