"""Measuring the curvature does not change weights, gradients, random numbers or settings."""

from __future__ import annotations

import pytest
import torch
from curvature_nets import problem, twin_eigenvalues
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.curvature import Curvature, preconditioner


def test_measuring_does_not_change_the_losses() -> None:
    def losses(*, measuring: bool) -> list[float]:
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.3), nn.Linear(10, 4))
        x, y = torch.randn(32, 6), torch.randint(4, (32,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        # In training mode on purpose: the dropout draws random numbers.
        instrument = Curvature(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
        values = []
        for step in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if measuring:
                with torch.no_grad():
                    instrument.measure(
                        index=step % 2 == 0, preconditioner=preconditioner(optimizer, list(model.parameters()))
                    )
            optimizer.step()
            values.append(loss.item())
        return values

    assert losses(measuring=True) == losses(measuring=False)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_measuring_does_not_change_weights_gradients_random_numbers_or_settings(name: str) -> None:
    model, loss = problem(name, torch.float32)
    kernels = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    for filled in (False, True):
        for p in model.parameters():
            p.grad = torch.randn_like(p) if filled else None
        before = [(p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        random = torch.get_rng_state()
        Curvature(loss, list(model.parameters())).measure()
        Curvature(loss, list(model.parameters())).measure(index=True)
        assert torch.equal(torch.get_rng_state(), random)
        for p, (weight, grad, values) in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, weight)
            assert p.grad is grad
            assert values is None or torch.equal(grad, values)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == kernels


def test_curvature_can_be_measured_under_no_grad() -> None:
    model, loss = problem("mlp", torch.float32)
    with torch.no_grad():
        reading = Curvature(loss, list(model.parameters())).measure()
        assert not torch.is_grad_enabled()
    assert reading.converged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_gpu_gives_the_same_reading_and_keeps_its_random_numbers(name: str) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, torch.float64, device="cuda")

    def drawing() -> Tensor:
        return loss() + 0 * torch.rand((), device="cuda")

    random = torch.cuda.get_rng_state()
    reading = Curvature(drawing, list(model.parameters())).measure(tolerance=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((float(true[0]), float(true[-1])), rel=1e-6)
