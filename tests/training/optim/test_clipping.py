"""Clipping to a global norm compared with NumPy in float64 and with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tui_descent.training.optim.clipping import clip, global_norm

SHAPES = ((7, 5), (5,), (3, 2, 4), (), (1, 1))


def parameters_with_gradients(size: float, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (drawn * size).to(dtype)
    return [*parameters[:2], nn.Parameter(torch.ones(3, dtype=dtype)), *parameters[2:]]  # one has no gradient


def grads(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad.clone() for p in parameters if p.grad is not None]


def flat(parameters: list[nn.Parameter]) -> np.ndarray:
    return np.concatenate([p.grad.double().numpy().ravel() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1.0, 1e8, 1e19, 1e30])
@pytest.mark.parametrize("share", [0.1, 0.999, 1.001, 10.0])
def test_clipping_equals_numpy_at_every_gradient_size(dtype: torch.dtype, size: float, share: float) -> None:
    parameters = parameters_with_gradients(size, dtype=dtype)
    before, bits = flat(parameters), grads(parameters)
    exact = float(np.sqrt(np.sum((before / size) ** 2)) * size)
    limit = exact * share
    norm = clip(parameters, limit)
    assert norm is not None
    assert norm.shape == ()
    tight = 1e-14 if dtype == torch.float64 else 5e-7
    assert float(norm) == pytest.approx(exact, rel=tight)
    assert flat(parameters) == pytest.approx(before * min(1.0, share), rel=2 * tight, abs=0)
    if share > 1:
        assert all(torch.equal(a, b) for a, b in zip(grads(parameters), bits, strict=True))
    assert parameters[2].grad is None


@pytest.mark.parametrize("size", [0.01, 1.0, 1e3])
def test_clipping_equals_torch_except_for_its_epsilon(size: float) -> None:
    ours, theirs = parameters_with_gradients(size), parameters_with_gradients(size)
    norm = clip(ours, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert norm is not None
    assert torch.equal(norm, expected)
    assert all(torch.allclose(a, b, rtol=3e-6) for a, b in zip(grads(ours), grads(theirs), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_norm_leaves_gradients_unchanged(bad: float) -> None:
    parameters = parameters_with_gradients(5.0)
    assert parameters[0].grad is not None
    parameters[0].grad[2, 3] = bad
    bits = grads(parameters)
    norm = clip(parameters, 1.0)
    assert norm is not None
    assert not torch.isfinite(norm)
    assert all(torch.equal(a, b) for a, b in zip(grads(parameters)[1:], bits[1:], strict=True))
    assert torch.equal(grads(parameters)[0].nan_to_num(), bits[0].nan_to_num())


def test_norm_is_divided_by_the_grad_scaler_factor() -> None:
    scaled, plain = parameters_with_gradients(65536.0), parameters_with_gradients(1.0)
    a, b = clip(scaled, 2.0, grad_scale=torch.tensor(65536.0)), clip(plain, 2.0)
    assert a is not None
    assert b is not None
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    assert flat(scaled) == pytest.approx(flat(plain) * 65536.0, rel=1e-6)


def test_clip_without_gradients_returns_none_and_keeps_zeros() -> None:
    assert clip([nn.Parameter(torch.ones(3))], 1.0) is None
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    norm = clip([parameter], 1.0)
    assert norm is not None
    assert float(norm) == 0
    assert torch.equal(parameter.grad, torch.zeros(3))


def test_gradients_of_different_dtypes_are_clipped_together() -> None:
    parameters = parameters_with_gradients(1.0, dtype=torch.float32) + parameters_with_gradients(
        1.0, dtype=torch.float64, seed=1
    )
    before = flat(parameters)
    norm = clip(parameters, 0.5)
    assert norm is not None
    assert float(norm) == pytest.approx(float(np.linalg.norm(before)), rel=1e-6)
    assert float(np.linalg.norm(flat(parameters))) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_clipping_on_cuda_does_not_synchronise() -> None:
    parameters = [nn.Parameter(torch.zeros(50, 50, device="cuda")) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e20)
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = clip(parameters, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm is not None
    assert float(norm) == pytest.approx(1e22)
    assert float(global_norm([p.grad for p in parameters if p.grad is not None])) == pytest.approx(1.0)


KINDS = {
    "complex": lambda: torch.randn(5, 4, dtype=torch.cfloat),
    "conjugate": lambda: torch.randn(5, 4, dtype=torch.cfloat).conj(),
    "sparse": lambda: torch.randn(5, 4).relu().to_sparse(),
    "sparse with repeated indices": lambda: torch.sparse_coo_tensor(
        [[0, 2, 2, 4]], torch.randn(4, 4), (5, 4), check_invariants=True
    ),
    "bfloat16": lambda: torch.randn(500, 400).bfloat16(),
    "large": lambda: torch.full((1000, 1100), 0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_kind_are_clipped_to_the_limit(kind: str) -> None:
    parameter, other = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))
    first = KINDS[kind]()
    parameter.data = torch.zeros(first.shape, dtype=first.dtype)
    parameter.grad, other.grad = first.clone(), torch.randn(3)

    def numbers() -> np.ndarray:
        assert parameter.grad is not None
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        wide = grad.resolve_conj().to(torch.complex128)
        return np.concatenate([wide.numpy().ravel(), np.asarray(other.grad, dtype=np.complex128)])

    before = numbers()
    norm = clip([parameter, other], 0.5)
    assert norm is not None
    assert float(norm) == pytest.approx(np.linalg.norm(before), rel=1e-5)
    within = 1e-2 if kind == "bfloat16" else 1e-5
    np.testing.assert_allclose(numbers(), before * 0.5 / np.linalg.norm(before), rtol=within, atol=1e-9)
