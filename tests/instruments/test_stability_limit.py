"""Stability limits and preconditioners against torch's optimizers as they run."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from curvature_nets import mlp, problem, quadratic
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.curvature import Curvature, preconditioner, stability_limit


def run_along(
    make: Callable[[nn.Parameter], torch.optim.Optimizer], eigenvalues: list[float], steps: int = 4000
) -> float:
    """Distance from the minimum of ½Σλw² after some steps, over that of the start."""
    w = nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))
    optimizer = make(w)
    for _ in range(steps):
        w.grad = torch.tensor(eigenvalues).double() * w.detach()
        optimizer.step()
        if not 1e-9 < float(w.detach().norm()) < 1e9:
            break
    return float(w.detach().norm()) / math.sqrt(len(eigenvalues))


SGDS = {
    "2/η": {},
    "2/η − κ": {"weight_decay": 0.5},
    "2(1+β)/η": {"momentum": 0.9},
    "2(1+β)/η − κ": {"momentum": 0.9, "weight_decay": 0.5},
    "2(1+β)/((1−τ)η)": {"momentum": 0.8, "dampening": 0.5},
    "2(1+β)/(η(1+2β))": {"momentum": 0.9, "nesterov": True},
    "2(1+β)/(η(1+2β)) − κ": {"momentum": 0.5, "nesterov": True, "weight_decay": 0.5},
}


@pytest.mark.parametrize("formula", SGDS)
@pytest.mark.parametrize("lr", [0.03, 0.5])
def test_sgd_converges_below_its_limit_and_diverges_above(formula: str, lr: float) -> None:
    def make(w: nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([w], lr=lr, **SGDS[formula])

    limit = stability_limit(make(nn.Parameter(torch.ones(1))), lr)
    assert limit is not None
    assert (limit.formula, limit.preconditioned) == (formula, False)
    assert run_along(make, [0.1 * limit.lambda_max, 0.99 * limit.lambda_max]) < 1e-6
    assert run_along(make, [0.1 * limit.lambda_max, 1.01 * limit.lambda_max]) > 1e6


def frozen_adaptive(kind: str, w: nn.Parameter, squares: Tensor, lr: float) -> torch.optim.Optimizer:
    """A torch optimizer with a constant second moment; Adam at a step without bias correction."""
    if kind.startswith("rmsprop"):
        optimizer = torch.optim.RMSprop([w], lr=lr, alpha=1.0, momentum=0.9 * kind.endswith("momentum"))
        optimizer.state[w] = {"step": torch.tensor(1e20), "square_avg": squares.clone()}
        optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
        return optimizer
    make = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    optimizer = make([w], lr=lr, betas=(0.9, 1 - 2**-53), weight_decay=0.0)
    state = {"exp_avg": torch.zeros_like(w), "exp_avg_sq": squares.clone(), "step": torch.tensor(1e20)}
    optimizer.state[w] = state
    return optimizer


@pytest.mark.parametrize(
    ("kind", "constant"), [("adam", 38.0), ("adamw", 38.0), ("rmsprop", 2.0), ("rmsprop momentum", 3.8)]
)
def test_adaptive_optimizer_diverges_at_the_measured_preconditioned_curvature(kind: str, constant: float) -> None:
    torch.manual_seed(4)
    squares = torch.logspace(-4, 0, 12, dtype=torch.float64)
    w, loss = quadratic(torch.linspace(-0.0, 5, 12, dtype=torch.float64) + 0.2)
    scales = preconditioner(frozen_adaptive(kind, w, squares, 1e-3), [w])
    assert scales is not None
    measured = Curvature(loss, [w]).measure(preconditioner=scales, tolerance=1e-6).lambda_max
    plain = Curvature(loss, [w]).measure(tolerance=1e-6).lambda_max
    assert measured > 2 * plain
    start = w.detach().clone()
    for factor, ends in ((0.98, 1e-3), (1.02, 1e3)):
        lr = factor * constant / measured
        with torch.no_grad():
            w.copy_(start)
        optimizer = frozen_adaptive(kind, w, squares, lr)
        limit = stability_limit(optimizer, lr)
        assert limit is not None
        assert limit.preconditioned
        assert limit.lambda_max == pytest.approx(constant / lr)
        assert (measured < limit.lambda_max) == (factor < 1)
        for _ in range(4000):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if not 1e-4 < float(w.detach().norm()) < 1e4:
                break
        assert (float(w.detach().norm()) > ends) == (factor > 1)


def test_preconditioner_equals_that_of_the_update() -> None:
    for make in (
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99)),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.99), amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    ):
        model, loss = problem("mlp", torch.float64)
        parameters = list(model.parameters())
        optimizer = make(parameters)
        assert preconditioner(optimizer, parameters) is None
        for _ in range(3):
            before = [p.detach().clone() for p in parameters]
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        scales = preconditioner(optimizer, parameters)
        assert scales is not None
        for p, old, scale in zip(parameters, before, scales, strict=True):
            # The update is −ηP⁻¹m, and m the gradient where there is no momentum; P after this gradient.
            mean = optimizer.state[p].get("exp_avg", p.grad)
            torch.testing.assert_close(p.detach() - old, -0.01 * scale.square() * mean, rtol=1e-9, atol=1e-15)


def test_parameters_without_optimizer_state_have_scale_zero() -> None:
    held, other, never = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.Adam([held, never])
    held.grad = torch.tensor([1.0, 0.5])
    optimizer.step()
    scales = preconditioner(optimizer, [other, held, never])
    assert scales is not None
    assert [bool((s > 0).all()) for s in scales] == [False, True, False]
    assert float(scales[0].sum() + scales[2].sum()) == 0
    assert other not in optimizer.state


def test_unknown_limits_are_none() -> None:
    def w() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(1))]

    class UserSgd(torch.optim.SGD):
        pass

    rates = [{"params": w(), "lr": 0.1}, {"params": w(), "lr": 0.2}]
    for optimizer in (
        torch.optim.Adagrad(w()),
        torch.optim.LBFGS(w()),
        torch.optim.SGD(w(), maximize=True),
        torch.optim.SGD(rates),
        torch.optim.SGD(w(), momentum=0.9, dampening=1.0),
        torch.optim.Adam(w(), weight_decay=0.1),
        torch.optim.RMSprop(w(), weight_decay=0.1),
        UserSgd(w()),
    ):
        assert stability_limit(optimizer, 0.1) is None
    assert stability_limit(torch.optim.SGD(w()), 0.0) is None
    decays = [{"params": w(), "weight_decay": 0.1}, {"params": w(), "weight_decay": 0.0}]
    limit = stability_limit(torch.optim.AdamW(decays), 1e-3)
    assert limit is not None
    assert limit.lambda_max == pytest.approx(38_000)
    assert preconditioner(torch.optim.SGD(w()), w()) is None


def test_gradient_descent_settles_at_the_edge_of_stability() -> None:
    torch.manual_seed(0)
    model = mlp()
    x, y = torch.randn(40, 6), F.one_hot(torch.randint(4, (40,)), 4).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    instrument = Curvature(lambda: F.mse_loss(model(x), y), list(model.parameters()))
    limit = stability_limit(optimizer, 1.0)
    assert limit is not None
    ratios = []
    for step in range(1200):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        if step % 40 == 0:
            ratios.append(instrument.measure().lambda_max / limit.lambda_max)
    assert ratios[0] < 0.5
    assert sum(ratios[-10:]) / 10 == pytest.approx(1, abs=0.1)
