"""λmax, λmin and the negative share of the Hessian, against an independent twin."""

from __future__ import annotations

import math

import pytest
import torch
from curvature_nets import mlp, problem, quadratic, train, twin, twin_eigenvalues
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments import curvature
from tui_descent.instruments.curvature import Curvature
from tui_descent.scenario.spec import Surface as SurfaceName
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.nets.surface import Surface

# --- both ends of the spectrum


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_lanczos_finds_both_ends_of_the_full_hessian(name: str, dtype: torch.dtype, within: float) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, dtype)
    reading = Curvature(loss, list(model.parameters())).measure(tolerance=1e-4)
    assert reading.converged
    assert reading.how == "Lanczos"
    assert reading.lambda_max == pytest.approx(float(true[-1]), rel=within)
    assert reading.lambda_min == pytest.approx(float(true[0]), rel=within)
    assert reading.lambda_min < 0
    assert reading.parameters == len(true)
    assert reading.products < 40


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_default_tolerance_is_accurate_to_a_thousandth(name: str) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, torch.float32)
    reading = Curvature(loss, list(model.parameters())).measure()
    assert reading.converged
    assert reading.lambda_max == pytest.approx(float(true[-1]), rel=1e-3)
    assert reading.lambda_min == pytest.approx(float(true[0]), rel=1e-3)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_full_hessian_gives_the_same_ends_and_counts_negative_eigenvalues(name: str, dtype: torch.dtype) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, dtype)
    reading = Curvature(loss, list(model.parameters())).measure(index=True)
    assert reading.how == "full Hessian"
    assert reading.products == len(true)
    assert reading.converged
    assert reading.lambda_max == pytest.approx(float(true[-1]), rel=1e-6)
    assert reading.lambda_min == pytest.approx(float(true[0]), rel=1e-5)
    counted = (true < -reading.negative_below * true.abs().max()).double().mean()
    assert reading.negative_fraction == pytest.approx(float(counted), abs=0.01)


def test_residual_bounds_the_error() -> None:
    true = twin_eigenvalues("mlp")
    model, loss = problem("mlp", torch.float64)
    for most in (4, 8, 12, 16):
        reading = Curvature(loss, list(model.parameters())).measure(tolerance=0.0, max_products=most)
        assert reading.products == most
        assert not reading.converged
        for value, residual in ((reading.lambda_max, reading.residual_max), (reading.lambda_min, reading.residual_min)):
            # Some eigenvalue lies within |Hv − θv| of θ.
            assert float((true - value).abs().min()) <= residual * max(abs(value), 0.01 * reading.lambda_max) + 1e-9


def test_lanczos_finds_the_negative_end_that_power_iteration_misses() -> None:
    w, loss = quadratic(torch.linspace(-1, 3, 40, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss(), w, create_graph=True)
    v = torch.randn(40, dtype=torch.float64)
    for _ in range(500):
        (v,) = torch.autograd.grad(gradient, w, v / v.norm(), retain_graph=True)
    assert float(v.norm()) == pytest.approx(3, rel=1e-6)
    reading = Curvature(loss, [w]).measure(tolerance=1e-6)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-1, 3), rel=1e-6)


def test_small_negative_eigenvalue_is_found_among_many_near_zero() -> None:
    bulk = 1e-5 * torch.randn(4000, dtype=torch.float64)
    w, loss = quadratic(torch.cat([bulk, torch.tensor([-0.05, -0.03, 3.0, 17.0], dtype=torch.float64)]))
    instrument = Curvature(loss, [w])
    for _ in range(4):
        reading = instrument.measure()
        assert reading.converged
        assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-0.05, 17), rel=1e-3)


def test_unconverged_ends_lie_inside_the_spectrum() -> None:
    w, loss = quadratic(torch.linspace(-1, 3, 2000, dtype=torch.float64))
    reading = Curvature(loss, [w]).measure(max_products=5)
    assert not reading.converged
    assert -1 < reading.lambda_min < 0 < reading.lambda_max < 3


def test_negative_end_may_have_the_larger_magnitude() -> None:
    w, loss = quadratic(torch.linspace(-3, 1, 40, dtype=torch.float64))
    reading = Curvature(loss, [w]).measure(tolerance=1e-6)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-3, 1), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_loss_does_not_matter(scale: float) -> None:
    w, loss = quadratic(torch.linspace(-1, 3, 40, dtype=torch.float64))
    reading = Curvature(lambda: scale * loss(), [w]).measure(tolerance=1e-6)
    assert reading.converged
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-scale, 3 * scale), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "start", "eigenvalues"),
    [
        ("fragment", (1.0,), [8.0]),
        ("valley", (10.0, 1.0), [1.0, 100.0]),
        ("saddle", (1.0, 1e-6), [-2.0, 2.0]),
        ("rosenbrock", (0.0, 1.0), [-398.0, 200.0]),
        ("monkey_saddle", (0.01, 0.0), [-0.06 + 1e-4, 0.06 + 3e-4]),
    ],
)
@pytest.mark.parametrize("index", [False, True])
def test_surfaces_have_the_curvature_computed_by_hand(
    function: SurfaceName, start: tuple[float, ...], eigenvalues: list[float], index: bool
) -> None:
    surface = Surface(SurfaceModel(function=function, start=start))
    reading = Curvature(surface, list(surface.parameters())).measure(index=index)
    assert reading.lambda_min == pytest.approx(eigenvalues[0], rel=1e-9)
    assert reading.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-9)
    assert reading.converged
    if index:
        assert reading.negative_fraction == sum(e < 0 for e in eigenvalues) / len(eigenvalues)
    else:
        assert reading.negative_fraction is None


# --- the negative share


@pytest.mark.parametrize("negative", [0, 1, 7, 100])
def test_negative_share_of_a_known_spectrum_is_exact(negative: int) -> None:
    eigenvalues = torch.cat([-torch.linspace(1e-3, 1, negative), torch.linspace(0, 2, 100 - negative)]).double()
    w, loss = quadratic(eigenvalues)
    assert Curvature(loss, [w]).measure(index=True).negative_fraction == negative / 100


def test_negative_share_of_a_large_hessian_is_estimated() -> None:
    for share in (0.0, 0.1, 0.4, 1.0):
        below = round(share * 3000)
        eigenvalues = torch.cat([-torch.linspace(0.05, 1, below), torch.linspace(0.05, 2, 3000 - below)]).double()
        w, loss = quadratic(eigenvalues)
        reading = Curvature(loss, [w]).measure(index=True)
        assert reading.how == "Lanczos"
        assert reading.negative_fraction == pytest.approx(share, abs=0.04)


def test_estimated_negative_share_agrees_with_the_count_on_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = mlp(width=36), torch.randn(64, 6), torch.randint(4, (64,))

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    instrument = Curvature(loss, list(model.parameters()))
    for steps in (0, 5, 10):
        train(model, loss, steps=steps)
        estimate = instrument.measure(index=True)
        assert (estimate.how, estimate.parameters) == ("Lanczos", 1732)
        with monkeypatch.context() as patch:
            patch.setattr(curvature, "FULL_UP_TO", 2000)
            patch.setitem(curvature.NEGATIVE, "full Hessian", estimate.negative_below)
            count = instrument.measure(index=True)
        assert count.how == "full Hessian"
        assert count.negative_fraction is not None
        assert 0.005 < count.negative_fraction < 0.5
        assert estimate.negative_fraction == pytest.approx(count.negative_fraction, abs=0.05)


# --- starts


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_warm_start_needs_fewer_products(name: str) -> None:
    model, loss = problem(name, torch.float32, steps=60)
    parameters = list(model.parameters())
    keeper = Curvature(loss, parameters)
    keeper.measure()
    cold = warm = 0
    for n in range(8):
        train(model, loss, steps=1, lr=1e-3)
        first, again = Curvature(loss, parameters, seed=n).measure(), keeper.measure()
        assert again.lambda_max == pytest.approx(first.lambda_max, rel=1e-3)
        assert again.lambda_min == pytest.approx(first.lambda_min, rel=1e-2)
        cold, warm = cold + first.products, warm + again.products
    assert warm < 0.75 * cold


def test_warm_start_finds_new_directions() -> None:
    eigenvalues = torch.linspace(-1, 3, 300, dtype=torch.float64)
    w, loss = quadratic(eigenvalues)
    instrument = Curvature(loss, [w])
    instrument.measure()
    # New largest and smallest eigenvalues, orthogonal to the old ones.
    eigenvalues[140], eigenvalues[150] = 3.5, -1.2
    reading = instrument.measure()
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-1.2, 3.5), rel=1e-3)


def test_preconditioned_hessian_has_its_own_warm_start() -> None:
    w, loss = quadratic(torch.linspace(1, 3, 300, dtype=torch.float64))
    scales = [torch.linspace(1, 2, 300, dtype=torch.float64)]
    instrument = Curvature(loss, [w])
    for _ in range(2):
        assert instrument.measure(tolerance=1e-3).lambda_max == pytest.approx(3, rel=1e-3)
        reading = instrument.measure(preconditioner=scales, tolerance=1e-3)
        assert reading.lambda_max == pytest.approx(12, rel=1e-3)


def test_same_seed_gives_the_same_bits() -> None:
    model, loss = problem("mlp", torch.float32)
    one, two = (Curvature(loss, list(model.parameters()), seed=3).measure() for _ in range(2))
    assert one == two


# --- parameters that are left out, and spectra of few eigenvalues


def test_frozen_and_unused_parameters_are_left_out() -> None:
    model, loss = problem("mlp", torch.float64)
    first, *others = model.parameters()
    unused = nn.Parameter(torch.ones(5, dtype=torch.float64))
    first.requires_grad_(False)
    true = torch.linalg.eigvalsh(twin(others, loss))
    for index in (False, True):
        reading = Curvature(loss, [unused, first, *others]).measure(index=index, tolerance=1e-4)
        assert reading.parameters == len(true)
        assert (reading.lambda_min, reading.lambda_max) == pytest.approx((float(true[0]), float(true[-1])), rel=1e-6)


def test_unfreezing_a_layer_discards_the_warm_start() -> None:
    model, loss = problem("mlp", torch.float64)
    first, *others = model.parameters()
    instrument = Curvature(loss, [first, *others])
    first.requires_grad_(False)
    assert instrument.measure().parameters == sum(p.numel() for p in others)
    first.requires_grad_(True)
    reading = instrument.measure(tolerance=1e-3)
    assert reading.lambda_max == pytest.approx(float(twin_eigenvalues("mlp")[-1]), rel=1e-4)


@pytest.mark.parametrize("index", [False, True])
def test_linear_parameter_has_curvature_zero(index: bool) -> None:
    curved, linear = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    reading = Curvature(lambda: curved.square().sum() + linear.sum(), [curved, linear]).measure(index=index)
    assert reading.parameters == 6
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((0, 2), abs=1e-12)
    flat = Curvature(lambda: linear.sum(), [linear]).measure(index=index)
    assert (flat.lambda_min, flat.lambda_max, flat.converged) == (0, 0, True)


def test_reading_without_parameters_is_nan() -> None:
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    unused = nn.Parameter(torch.ones(3))
    for loss in (lambda: frozen.square().sum(), lambda: (unused * 0).sum().detach()):
        reading = Curvature(loss, [frozen, unused]).measure(index=True)
        assert math.isnan(reading.lambda_max)
        assert not reading.converged
        assert (reading.parameters, reading.products, reading.negative_fraction) == (0, 0, None)


@pytest.mark.parametrize("index", [False, True])
def test_nan_weights_give_nan_and_no_error(index: bool) -> None:
    model, loss = problem("mlp", torch.float32)
    next(model.parameters()).data.fill_(math.nan)
    reading = Curvature(loss, list(model.parameters())).measure(index=index)
    assert math.isnan(reading.lambda_max)
    assert math.isnan(reading.lambda_min)
    assert not reading.converged
    assert reading.negative_fraction is None


def test_few_distinct_eigenvalues_end_lanczos_early() -> None:
    for values in ([1.0], [-2.0, 5.0], [-1.0, 0.0, 4.0]):
        w, loss = quadratic(torch.tensor(values).double().repeat_interleave(30))
        reading = Curvature(loss, [w]).measure(tolerance=1e-9)
        assert reading.products <= len(values) + 1
        assert reading.converged
        assert (reading.lambda_min, reading.lambda_max) == pytest.approx((values[0], values[-1]), rel=1e-9)


def test_a_measurement_ends_at_its_time_limit() -> None:
    true = twin_eigenvalues("mlp")
    model, loss = problem("mlp", torch.float64)
    instrument = Curvature(loss, list(model.parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "FULL_UP_TO", 0)
        reading = instrument.measure(index=True, limit_s=0.0)
    assert reading.products == curvature.LEAST_PRODUCTS
    assert not reading.converged
    assert reading.negative_fraction is None
    assert float(true[0]) <= reading.lambda_min < reading.lambda_max <= float(true[-1])
