"""Two-dimensional data sets with two classes, generated from the seed: moons, circles, xor, spirals."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tui_descent.scenario.spec import CirclesData, MoonsData, SpiralsData, ToyData, XorData
from tui_descent.training.setup.data.batches import DataSet

HELD_OUT = 0.2  # fraction of the points


def load(spec: ToyData, *, seed: int) -> DataSet:
    """Generate `spec.points` points with Gaussian noise, half of them in each class. A fifth is held out."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(spec.points) % 2  # (n,)
    x = _DRAW[type(spec)](y, g)  # (n, 2)
    x = x + spec.noise * torch.randn(x.shape, generator=g)
    x = (x - x.mean(dim=0)) / x.std()
    order = torch.randperm(spec.points, generator=g)
    x, y = x[order], y[order]
    n = spec.points - int(spec.points * HELD_OUT)
    return DataSet(x=x[:n], y=y[:n], held_out_x=x[n:], held_out_y=y[n:], classes=2)


def _moons(y: Tensor, g: Generator) -> Tensor:
    angle = torch.rand(len(y), generator=g) * math.pi
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    return torch.where(y[:, None] == 0, upper, lower)


def _circles(y: Tensor, g: Generator) -> Tensor:
    angle = torch.rand(len(y), generator=g) * 2 * math.pi
    radius = torch.where(y == 0, 1.0, 0.5)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def _xor(y: Tensor, g: Generator) -> Tensor:
    left = torch.randint(0, 2, (len(y),), generator=g) * 2.0 - 1
    up = torch.where(y == 0, left, -left)
    return torch.stack([left, up], dim=1)


def _spirals(y: Tensor, g: Generator) -> Tensor:
    radius = torch.rand(len(y), generator=g).sqrt()
    angle = radius * 3 * math.pi + y * math.pi
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


_DRAW: dict[type[ToyData], Callable[[Tensor, Generator], Tensor]] = {
    MoonsData: _moons,
    CirclesData: _circles,
    XorData: _xor,
    SpiralsData: _spirals,
}
