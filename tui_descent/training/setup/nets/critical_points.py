"""Finds the minima, saddles and maxima of a function of one or two numbers, for the picture of a formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tui_descent.protocol.task_pictures import CriticalPoint, CriticalPointKind

STARTS = 289  # the search begins at this many points
# Multiples of these, modulo 1, are spread evenly without forming a grid, which a periodic function could fit
# (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
SPREAD = (0.7548776662466927, 0.5698402909980532)
ITERATIONS = 40
MOST_STEP = 0.1  # of the box, in one iteration
SMALL = 1e-9  # the gradient at a critical point, relative to the median gradient where the search begins
SAME = 1e-3  # of the box: points closer than this are one
NEAR = 1e-4  # of the box: the distance at which the loss is compared with that of the point
DIRECTIONS = 32
MOST_FOUND = 16


def critical_points(
    function: Callable[[Tensor], Tensor], start: Sequence[float], half: float
) -> tuple[CriticalPoint, ...]:
    """The critical points of `function` in the box from -`half` to `half`, those closest to `start` first.

    `function` takes w of shape (n, N), n = 1 or 2, and returns (N,), float64. ‖∇f‖² is minimised by damped Gauss-Newton
    steps from many points, and minima, saddles and maxima attract alike. Points on a flat line or plane are left out,
    because they are none of the three kinds. At most `MOST_FOUND` are returned.
    """
    numbers = torch.arange(1, STARTS + 1, dtype=torch.float64)
    w = torch.stack([(numbers * SPREAD[n] % 1 * 2 - 1) * half for n in range(len(start))])  # (n, N)
    first = _derivatives(function, w)[0].norm(dim=0)
    known = first[first.isfinite()]
    limit = SMALL * float(known.median()) if len(known) else 0.0
    for _ in range(ITERATIONS):
        gradient, hessian = _derivatives(function, w)
        w = w + _step(gradient, hessian, MOST_STEP * 2 * half)
    norms = _derivatives(function, w)[0].norm(dim=0)
    fits = (norms <= limit) & (w.abs() <= half).all(dim=0)
    candidates = sorted(zip(norms[fits].tolist(), w.T[fits].tolist(), strict=True))  # the most exact ones first
    found: list[list[float]] = []
    for _, at in candidates:
        if all(math.dist(at, other) > SAME * half for other in found):
            found.append(at)
    found.sort(key=lambda at: math.dist(at, start))
    points: list[CriticalPoint] = []
    for at in found[: 2 * MOST_FOUND]:
        kind = _kind(function, torch.tensor(at, dtype=torch.float64), NEAR * half)
        if kind is not None and len(points) < MOST_FOUND:
            points.append(CriticalPoint(kind, tuple(0.0 if abs(x) < 1e-12 * half else x for x in at)))
    return tuple(points)


def _derivatives(function: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (n, N) and Hessians (n, n, N) at each of the points w, (n, N)."""
    with torch.enable_grad():
        w = w.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(w).sum(), w, create_graph=True)
        rows = []
        for part in gradient:
            row = None
            if part.requires_grad:
                (row,) = torch.autograd.grad(part.sum(), w, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(w) if row is None else row)
    return gradient.detach(), torch.stack(rows).detach()


def _step(gradient: Tensor, hessian: Tensor, most: float) -> Tensor:
    """The damped Gauss-Newton step that minimises ‖∇f‖², (n, N); 0 where it is not finite."""
    matrices, g = hessian.permute(2, 0, 1), gradient.T[:, :, None]  # (N, n, n), (N, n, 1)
    usable = matrices.isfinite().all(dim=(1, 2)) & g.isfinite().all(dim=(1, 2))
    matrices, g = (torch.where(usable[:, None, None], t, torch.zeros_like(t)) for t in (matrices, g))
    values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
    least = values.abs().amax(dim=1, keepdim=True) * 1e-6 + 1e-150
    shrunk = values / (values.square() + least.square())
    step = -(vectors @ (shrunk[:, :, None] * (vectors.mT @ g)))[:, :, 0]  # (N, n)
    step = step * (most / step.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0).T


def _kind(function: Callable[[Tensor], Tensor], point: Tensor, distance: float) -> CriticalPointKind | None:
    """What the point is, from the losses around it; None if it is none of the three."""
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (2 * math.pi / DIRECTIONS) + 0.1
    around = torch.stack([angles.cos(), angles.sin()])
    _, hessian = _derivatives(function, point[:, None])
    axes = torch.linalg.eigh(hessian[:, :, 0]).eigenvectors  # a flat line is one of them
    around = torch.cat([around if len(point) == 2 else axes, axes, -axes], dim=1)
    loss = function(point)
    rise = function(point[:, None] + distance * around) - loss
    least = 1e-14 * max(1.0, abs(float(loss)))
    if bool((rise > least).all()):
        return "minimum"
    if bool((rise < -least).all()):
        return "maximum"
    falls_and_rises = bool((rise > least).any()) and bool((rise < -least).any())
    return "saddle" if falls_and_rises and len(point) == 2 else None
