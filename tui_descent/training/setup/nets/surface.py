"""Surfaces: losses that are functions of one or two parameters. Every step on them can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tui_descent.protocol.task_pictures import CriticalPoint
from tui_descent.scenario.spec import SurfaceModel


class Surface(nn.Module):
    """A loss f(w). The parameter w has shape (1,) or (2,)."""

    def __init__(self, spec: SurfaceModel) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(spec.start, dtype=torch.float64))
        self.function = spec.function
        self._function = FUNCTIONS[spec.function]

    def forward(self) -> Tensor:
        """The loss, a scalar."""
        return self._function(self.w)


def _fragment(w: Tensor) -> Tensor:
    return (2 * w[0] - 3) ** 2


def _valley(w: Tensor) -> Tensor:
    return 0.5 * (w[0] ** 2 + 100 * w[1] ** 2)


def _saddle(w: Tensor) -> Tensor:
    return w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 4


def _monkey_saddle(w: Tensor) -> Tensor:
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2 + (w[0] ** 2 + w[1] ** 2) ** 2 / 4


def _rosenbrock(w: Tensor) -> Tensor:
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fragment": _fragment,
    "valley": _valley,
    "saddle": _saddle,
    "monkey_saddle": _monkey_saddle,
    "rosenbrock": _rosenbrock,
}

# Where the gradient is 0. At a saddle the loss falls in one direction and rises in another.
CRITICAL_POINTS: dict[str, tuple[CriticalPoint, ...]] = {
    "fragment": (CriticalPoint("minimum", (1.5,)),),
    "valley": (CriticalPoint("minimum", (0.0, 0.0)),),
    "saddle": (
        CriticalPoint("saddle", (0.0, 0.0)),
        CriticalPoint("minimum", (0.0, math.sqrt(2))),
        CriticalPoint("minimum", (0.0, -math.sqrt(2))),
    ),
    "monkey_saddle": (
        CriticalPoint("saddle", (0.0, 0.0)),
        CriticalPoint("minimum", (-3.0, 0.0)),
        CriticalPoint("minimum", (1.5, 1.5 * math.sqrt(3))),
        CriticalPoint("minimum", (1.5, -1.5 * math.sqrt(3))),
    ),
    "rosenbrock": (CriticalPoint("minimum", (1.0, 1.0)),),
}
