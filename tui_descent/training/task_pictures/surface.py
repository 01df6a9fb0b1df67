"""The picture of a test surface: its losses on a grid, the path of the run, the gradient, minima and saddles."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from tui_descent.protocol.task_pictures import MAX_SURFACE_CELLS, SurfacePicture, grid_size
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.surface import Surface, known_points

MARGIN = 0.12  # of the extent, on each side
# If start and critical points hardly differ in a coordinate, its extent is this fraction of the largest extent.
LEAST_EXTENT = 0.5
# If the path leaves the grid, its extent is doubled, at most this often: a run that diverges leaves any grid.
MOST_DOUBLINGS = 6
FAR = 1e100  # a start as far away as this is not part of the picture


class SurfacePainter:
    """Makes the pictures of one run on a surface."""

    def __init__(self, setup: Setup, *, most_doublings: int = MOST_DOUBLINGS) -> None:
        assert isinstance(setup.model, Surface)
        assert setup.path is not None
        self._surface, self._path = setup.model, setup.path
        self._function = setup.model.function
        assert isinstance(setup.scenario.model, SurfaceModel)
        self._critical = known_points(setup.scenario.model)
        self._low, self._high = _box(setup.path.start, [point.at for point in self._critical])
        self._doublings, self._most_doublings = 0, most_doublings

    def picture(self, columns: int, rows: int) -> SurfacePicture:
        """The picture for `columns` × `rows` cells, with the current weights. A loss of one parameter gets one row."""
        point = tuple(self._surface.w.tolist())
        past = self._path.positions()
        self.widen([*past, point])
        columns, rows = grid_size(columns, rows if len(point) == 2 else 1, MAX_SURFACE_CELLS)
        loss, gradient = self._at_point()
        return SurfacePicture(
            low=self._low,
            high=self._high,
            columns=columns,
            rows=rows,
            losses=array("f", self._losses(columns, rows).tolist()).tobytes(),
            critical=self._critical,
            path=array("d", chain.from_iterable(past)).tobytes(),
            point=point,
            loss=loss,
            gradient=gradient,
        )

    def _losses(self, columns: int, rows: int) -> Tensor:
        """The losses at the centres of the cells, (rows · columns,), float32, the upper row first."""
        sizes = (columns, rows)
        axes = [
            low + (high - low) / count * (torch.arange(count, dtype=torch.float64) + 0.5)
            for low, high, count in zip(self._low, self._high, sizes, strict=False)
        ]
        if len(axes) == 1:
            return self._function(axes[0][None]).float()
        x, y = torch.meshgrid(axes[0], axes[1].flip(0), indexing="xy")  # each (rows, columns)
        return self._function(torch.stack([x.flatten(), y.flatten()])).float()

    def _at_point(self) -> tuple[float, tuple[float, ...]]:
        """Loss and gradient at the current point. The parameter and its `.grad` are left unchanged."""
        w = self._surface.w.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = self._function(w)
            (gradient,) = torch.autograd.grad(loss, [w])
        return loss.item(), tuple(gradient.tolist())

    def widen(self, positions: Sequence[tuple[float, ...]]) -> None:
        """Double the extent until it contains all finite positions, or has been doubled as often as allowed."""
        known = [p for p in positions if all(map(math.isfinite, p))]
        while self._doublings < self._most_doublings and not all(self._contains(p) for p in known):
            self._doublings += 1
            half = [(high - low) / 2 for low, high in zip(self._low, self._high, strict=True)]
            self._low = tuple(low - h for low, h in zip(self._low, half, strict=True))
            self._high = tuple(high + h for high, h in zip(self._high, half, strict=True))

    def _contains(self, position: tuple[float, ...]) -> bool:
        return all(low <= x <= high for low, x, high in zip(self._low, position, self._high, strict=True))


def _box(start: tuple[float, ...], critical: list[tuple[float, ...]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The corners of a box around the start, the critical points, and the start mirrored at the nearest of them.

    Without critical points it extends from the start as far as the origin is, but at least by 1.
    """
    if not all(abs(x) < FAR for x in start):
        start = critical[0] if critical else (0.0,) * len(start)
    if not critical:
        half = max(1.0, *map(abs, start)) * (1 + MARGIN)
        return tuple(x - half for x in start), tuple(x + half for x in start)
    nearest = min(critical, key=lambda at: math.dist(at, start))
    mirrored = tuple(2 * c - s for c, s in zip(nearest, start, strict=True))
    by_axis = list(zip(*critical, start, mirrored, strict=True))
    extents = [max(values) - min(values) for values in by_axis]
    largest = max(extents) or 1.0
    low, high = [], []
    for values, extent in zip(by_axis, extents, strict=True):
        middle = (min(values) + max(values)) / 2
        half = (extent if extent > 0.02 * largest else LEAST_EXTENT * largest) * (0.5 + MARGIN)
        low.append(middle - half)
        high.append(middle + half)
    return tuple(low), tuple(high)
