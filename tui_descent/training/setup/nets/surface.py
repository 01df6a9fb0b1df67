"""Surfaces: losses that are functions of one or two parameters. Every step on them can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tui_descent.protocol.task_pictures import CriticalPoint
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.nets.critical_points import critical_points
from tui_descent.training.setup.nets.formula import function_of

Function = Callable[[Tensor], Tensor]
# Critical points of a formula are searched for around the origin, at least this far, and beyond the start. There is no
# search if the start is farther away than `MOST_REACH`.
LEAST_REACH, MOST_REACH = 5.0, 1e6


class Surface(nn.Module):
    """A loss f(w). The parameter w has shape (1,) or (2,)."""

    def __init__(self, spec: SurfaceModel) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(spec.start, dtype=torch.float64))
        self.function: Function = function_of(spec.formula) if spec.formula else FUNCTIONS[spec.function or "fragment"]

    def forward(self) -> Tensor:
        """The loss, a scalar."""
        return self.function(self.w)


def known_points(spec: SurfaceModel) -> tuple[CriticalPoint, ...]:
    """The critical points of a surface. Those of a formula are searched for around the origin and the start; the result
    may be empty.
    """
    if not spec.formula:
        return CRITICAL_POINTS[spec.function or "fragment"]
    reach = max(map(abs, spec.start))
    if not reach < MOST_REACH:
        return ()
    return critical_points(function_of(spec.formula), spec.start, half=max(LEAST_REACH, 1.5 * reach))


def _fragment(w: Tensor) -> Tensor:
    return (2 * w[0] - 3) ** 2


def _bowl(w: Tensor) -> Tensor:
    return (w[0] ** 2 + w[1] ** 2) / 2


def _valley(w: Tensor) -> Tensor:
    return 0.5 * (w[0] ** 2 + 100 * w[1] ** 2)


def _saddle(w: Tensor) -> Tensor:
    return w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 4


def _monkey_saddle(w: Tensor) -> Tensor:
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2 + (w[0] ** 2 + w[1] ** 2) ** 2 / 4


def _rosenbrock(w: Tensor) -> Tensor:
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def _beale(w: Tensor) -> Tensor:
    x, y = w[0], w[1]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _himmelblau(w: Tensor) -> Tensor:
    return (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2


FUNCTIONS: dict[str, Function] = {
    "fragment": _fragment,
    "bowl": _bowl,
    "valley": _valley,
    "saddle": _saddle,
    "monkey_saddle": _monkey_saddle,
    "rosenbrock": _rosenbrock,
    "beale": _beale,
    "himmelblau": _himmelblau,
}

# Where the gradient is 0. At a saddle the loss falls in one direction and rises in another. Those of Beale and
# Himmelblau without a closed form were found by Newton's method.
CRITICAL_POINTS: dict[str, tuple[CriticalPoint, ...]] = {
    "fragment": (CriticalPoint("minimum", (1.5,)),),
    "bowl": (CriticalPoint("minimum", (0.0, 0.0)),),
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
    "beale": (
        CriticalPoint("minimum", (3.0, 0.5)),
        CriticalPoint("saddle", (0.0, 1.0)),
        CriticalPoint("saddle", (0.10053793732415833, -2.6445135850231254)),
    ),
    "himmelblau": (
        CriticalPoint("minimum", (3.0, 2.0)),
        CriticalPoint("minimum", (-2.805118086952745, 3.131312518250573)),
        CriticalPoint("minimum", (-3.779310253377747, -3.2831859912861696)),
        CriticalPoint("minimum", (3.5844283403304917, -1.8481265269644036)),
        CriticalPoint("saddle", (-3.0730257507643897, -0.08135304428796751)),
        CriticalPoint("saddle", (-0.12796134673068005, -1.9537149802445766)),
        CriticalPoint("saddle", (0.08667750455539634, 2.884254701174776)),
        CriticalPoint("saddle", (3.385154183607021, 0.07385187983774928)),
        CriticalPoint("maximum", (-0.2708445906673476, -0.9230385564799815)),
    ),
}
