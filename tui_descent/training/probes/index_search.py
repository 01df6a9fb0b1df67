"""The index of a small net's loss, and the critical points near its weights (Dauphin et al. 2014, 1406.2572)."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

# An eigenvalue is negative if it is below minus this share of the largest absolute one. Smaller ones are flat.
FLAT = 0.01
ITERATIONS = 30
SMALL = 1e-8  # ‖∇L‖ at a critical point
FIRST_DAMPING, LEAST_DAMPING = 1e-2, 1e-8
TRIES = 8  # larger and larger dampings in one iteration


def flat_loss(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The loss as a function of all parameters in one vector (n,). Calling `net` without arguments gives its loss."""
    shapes = [(name, parameter.shape, parameter.numel()) for name, parameter in net.named_parameters()]

    def loss(weights: Tensor) -> Tensor:
        parts = torch.split(weights, [count for _, _, count in shapes])
        named = {name: part.view(shape) for (name, shape, _), part in zip(shapes, parts, strict=True)}
        found: Tensor = functional_call(net, named, ())
        return found

    return loss


def weights_of(net: nn.Module) -> Tensor:
    """A copy of all parameters as one vector (n,), float64."""
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]).double()


def index_at(loss: Callable[[Tensor], Tensor], weights: Tensor) -> int:
    """How many eigenvalues of the Hessian are negative."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(jacrev(grad(loss))(weights))
    return int((eigenvalues < -FLAT * eigenvalues.abs().max()).sum())


def critical_point(loss: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor | None:
    """The critical point to which minimising ‖∇L‖² leads from `weights`; None if the search does not converge."""
    search = search_steps(loss, weights)
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: Tensor | None = end.value
            return found


def search_steps(loss: Callable[[Tensor], Tensor], weights: Tensor) -> Generator[None, None, Tensor | None]:
    """The same search, which pauses after each iteration.

    Damped Gauss-Newton steps: minima, saddles and maxima attract alike.
    """
    slope, damping = grad(loss), FIRST_DAMPING
    curvature = jacrev(slope)  # the Hessian
    gradient: Tensor = slope(weights)
    for _ in range(ITERATIONS):
        if not bool(gradient.isfinite().all()):
            return None
        if float(gradient.norm()) < SMALL:
            return weights
        values, vectors = torch.linalg.eigh(curvature(weights))
        along = vectors.T @ gradient
        for _ in range(TRIES):
            tried = weights - vectors @ (values / (values.square() + damping**2) * along)
            next_gradient: Tensor = slope(tried)
            if bool(next_gradient.norm() < gradient.norm()):
                break
            damping *= 4
        else:
            return None
        weights, gradient, damping = tried, next_gradient, max(damping / 10, LEAST_DAMPING)
        yield
    return None
