"""The user's own points in the plane as data."""

from __future__ import annotations

import torch

from tui_descent.scenario.own_data import points
from tui_descent.scenario.spec import OwnPointsData
from tui_descent.training.setup.data.batches import DataSet


def load(spec: OwnPointsData, *, seed: int) -> DataSet:
    """Load the points. Inputs are float32, (n, 2), both coordinates with mean 0 and standard deviation 1.

    A fifth of the points, drawn from the seed, is held out. Raises `ValueError`.
    """
    found = points.read(spec)
    x = torch.tensor([found.x, found.y], dtype=torch.float64).T  # (n, 2)
    x = ((x - x.mean(dim=0)) / x.std(dim=0)).float()
    y = torch.frombuffer(bytearray(found.classes), dtype=torch.uint8).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    n = points.training_count(spec)
    return DataSet(x=x[:n], y=y[:n], held_out_x=x[n:], held_out_y=y[n:], classes=points.CLASSES, names=found.names)
