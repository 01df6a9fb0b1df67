"""Evaluation on held-out data, in eval mode. It does not change weights, buffers or random numbers."""

from __future__ import annotations

import torch

from tui_descent.training.setup.build import Setup


@torch.no_grad()
def evaluate(setup: Setup) -> tuple[float, float | None]:
    """Mean loss and accuracy (0 to 1) on the held-out data. For a surface, which has no data, the loss at its current
    point, and None.
    """
    was_training = setup.model.training
    setup.model.eval()
    try:
        if setup.batches is None or setup.loss_function is None:
            return setup.model().item(), None
        data = setup.batches.data
        outputs = setup.model(data.held_out_x)  # (n, classes); for text (n, T, classes)
        right = (outputs.argmax(dim=-1) == data.held_out_y).double().mean()
        loss, accuracy = torch.stack([setup.loss_function(outputs, data.held_out_y).double(), right]).tolist()
        return loss, accuracy
    finally:
        setup.model.train(was_training)
