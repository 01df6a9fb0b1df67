"""The loss along the next update: L(θ + s·d), where d is the update the optimizer would make, not the gradient."""

from __future__ import annotations

import math

import torch

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering

# Multiples s of the update: 0 is the current point, 1 the point after the next update.
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def look_ahead(steering: Steering, setup: Setup) -> list[float]:
    """The next batch's loss at θ + s·d for each s of `SCALES`; empty if d is 0.

    d = θ′ − θ is the change made by one real update. It includes momentum, preconditioning, weight decay, clipping and
    the multiplier of the learning-rate knob. Every forward pass draws the same random numbers, so dropout drops the
    same units. The caller must remove hooks from the optimizer before, and restore weights, optimizer and batches
    afterwards. Raises `ValueError` if the loss or d is not finite.
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
    steering.clip(steering.optimizers[0])
    steering.rate.apply()
    optimizer.step()
    steering.rate.remove()
    with torch.no_grad():
        update = [p - s for p, s in zip(weights, start, strict=True)]
        if not all(bool(d.isfinite().all()) for d in update):
            raise ValueError("the next update is not finite; lower the learning rate, or press u to go back")
        if not any(bool(d.any()) for d in update):
            return []
        losses = []
        for scale in SCALES:
            for p, s, d in zip(weights, start, update, strict=True):
                torch.add(s, d, alpha=scale, out=p)
            with undisturbed(model):
                losses.append(setup.replay_forward().item())
    return losses
