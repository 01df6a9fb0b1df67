"""Curvature against an independent twin, finite differences of plain gradients; the limits against optimizers that run.

The twin takes no second derivative, so it goes through the fused attention kernel. (`torch.func.hessian` is no twin: in
torch 2.13 it is wrong by 1e-3 for layer norm's weight, where double backward and finite differences agree to 1e-10.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments import curvature
from tui_descent.instruments.curvature import Curvature, preconditioner, stability_limit
from tui_descent.scenario.spec import Surface as SurfaceName
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.nets.surface import Surface


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Transformer(nn.Module):
    """One pre-norm block, 2 heads, through the fused attention call."""

    def __init__(self, *, width: int = 8, symbols: int = 5, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        b, t, d = h.shape
        q, k, v = self.qkv(self.norm(h)).view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        h = h + self.out(mixed)
        return self.head(h + self.mlp(h)).flatten(0, 1)


def mlp(features: int = 6, width: int = 10, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, classes)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.SiLU(), nn.Flatten(), nn.Linear(16, 4)
    )


def problem(
    name: str, dtype: torch.dtype, *, steps: int = 15, device: str = "cpu"
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A net a few Adam steps into its training, in eval mode, and its loss on one batch."""
    torch.manual_seed(1)
    model = {"mlp": mlp, "conv": conv, "transformer": Transformer}[name]().double()
    shape = {"mlp": (48, 6), "conv": (24, 1, 8, 8), "transformer": (12, 6)}[name]
    x = torch.randint(5, shape) if name == "transformer" else torch.randn(shape, dtype=torch.float64)
    y = torch.randint(4, (shape[0] * (shape[1] if name == "transformer" else 1),))
    train(model, lambda: F.cross_entropy(model(x), y), steps=steps)
    model.to(device, dtype).eval()
    x, y = x.to(device, dtype if x.is_floating_point() else x.dtype), y.to(device)
    return model, lambda: F.cross_entropy(model(x), y)


def train(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float = 0.01) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def twin(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, nudge: float = 1e-5) -> Tensor:
    """The Hessian by central differences of gradients, (n, n), float64; good to about 1e-10."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    sizes = [p.numel() for p in parameters]

    def gradient(at: Tensor) -> Tensor:
        with torch.no_grad():
            for p, part in zip(parameters, at.split(sizes), strict=True):
                p.copy_(part.view_as(p))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), parameters)])

    rows = [
        (gradient(flat + step) - gradient(flat - step)) / (2 * nudge) for step in nudge * torch.eye(len(flat)).double()
    ]
    gradient(flat)
    full = torch.stack(rows)
    return (full + full.T) / 2


@functools.cache
def twin_eigenvalues(name: str) -> Tensor:
    model, loss = problem(name, torch.float64)
    return torch.linalg.eigvalsh(twin(list(model.parameters()), loss))


def quadratic(eigenvalues: Tensor) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    """½ wᵀAw from a random point; A has the eigenvalues, in a random basis when it is small."""
    n = len(eigenvalues)
    w = nn.Parameter(torch.randn(n, dtype=torch.float64))
    if n > 200:
        return w, lambda: 0.5 * (eigenvalues * w.square()).sum()
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    a = basis @ torch.diag(eigenvalues) @ basis.T
    return w, lambda: 0.5 * w @ a @ w


# --- both ends of the spectrum


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_both_ends_are_the_full_hessians(name: str, dtype: torch.dtype, within: float) -> None:
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
def test_the_default_tolerance_is_good_to_a_thousandth(name: str) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, torch.float32)
    reading = Curvature(loss, list(model.parameters())).measure()
    assert reading.converged
    assert reading.lambda_max == pytest.approx(float(true[-1]), rel=1e-3)
    assert reading.lambda_min == pytest.approx(float(true[0]), rel=1e-3)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_full_hessian_gives_the_same_ends_and_counts_the_negative_ones(name: str, dtype: torch.dtype) -> None:
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


def test_the_residual_bounds_the_error() -> None:
    true = twin_eigenvalues("mlp")
    model, loss = problem("mlp", torch.float64)
    for most in (4, 8, 12, 16):
        reading = Curvature(loss, list(model.parameters())).measure(tolerance=0.0, max_products=most)
        assert reading.products == most
        assert not reading.converged
        for value, residual in ((reading.lambda_max, reading.residual_max), (reading.lambda_min, reading.residual_min)):
            # Some eigenvalue lies within |Hv − θv| of θ.
            assert float((true - value).abs().min()) <= residual * max(abs(value), 0.01 * reading.lambda_max) + 1e-9


def test_power_iteration_misses_the_negative_end_of_a_saddle_and_lanczos_does_not() -> None:
    w, loss = quadratic(torch.linspace(-1, 3, 40, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss(), w, create_graph=True)
    v = torch.randn(40, dtype=torch.float64)
    for _ in range(500):
        (v,) = torch.autograd.grad(gradient, w, v / v.norm(), retain_graph=True)
    assert float(v.norm()) == pytest.approx(3, rel=1e-6)
    reading = Curvature(loss, [w]).measure(tolerance=1e-6)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-1, 3), rel=1e-6)


def test_a_small_negative_end_is_found_behind_many_eigenvalues_next_to_zero() -> None:
    bulk = 1e-5 * torch.randn(4000, dtype=torch.float64)
    w, loss = quadratic(torch.cat([bulk, torch.tensor([-0.05, -0.03, 3.0, 17.0], dtype=torch.float64)]))
    instrument = Curvature(loss, [w])
    for _ in range(4):
        reading = instrument.measure()
        assert reading.converged
        assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-0.05, 17), rel=1e-3)


def test_short_of_convergence_both_ends_lie_inside_the_spectrum_and_it_says_so() -> None:
    w, loss = quadratic(torch.linspace(-1, 3, 2000, dtype=torch.float64))
    reading = Curvature(loss, [w]).measure(max_products=5)
    assert not reading.converged
    assert -1 < reading.lambda_min < 0 < reading.lambda_max < 3


def test_the_larger_end_may_be_the_negative_one() -> None:
    w, loss = quadratic(torch.linspace(-3, 1, 40, dtype=torch.float64))
    reading = Curvature(loss, [w]).measure(tolerance=1e-6)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-3, 1), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
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
def test_surfaces_have_the_curvature_that_one_computes_by_hand(
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
def test_the_negative_share_of_a_known_form_is_counted(negative: int) -> None:
    eigenvalues = torch.cat([-torch.linspace(1e-3, 1, negative), torch.linspace(0, 2, 100 - negative)]).double()
    w, loss = quadratic(eigenvalues)
    assert Curvature(loss, [w]).measure(index=True).negative_fraction == negative / 100


def test_above_the_limit_the_negative_share_is_estimated_and_says_so() -> None:
    for share in (0.0, 0.1, 0.4, 1.0):
        below = round(share * 3000)
        eigenvalues = torch.cat([-torch.linspace(0.05, 1, below), torch.linspace(0.05, 2, 3000 - below)]).double()
        w, loss = quadratic(eigenvalues)
        reading = Curvature(loss, [w]).measure(index=True)
        assert reading.how == "Lanczos"
        assert reading.negative_fraction == pytest.approx(share, abs=0.04)


def test_the_estimate_agrees_with_the_count_on_a_net(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_warm_start_needs_fewer_products_than_a_cold_one(name: str) -> None:
    model, loss = problem(name, torch.float32, steps=60)
    parameters = list(model.parameters())
    kept = Curvature(loss, parameters)
    kept.measure()
    cold = warm = 0
    for n in range(8):
        train(model, loss, steps=1, lr=1e-3)
        first, again = Curvature(loss, parameters, seed=n).measure(), kept.measure()
        assert again.lambda_max == pytest.approx(first.lambda_max, rel=1e-3)
        assert again.lambda_min == pytest.approx(first.lambda_min, rel=1e-2)
        cold, warm = cold + first.products, warm + again.products
    assert warm < 0.75 * cold


def test_a_warm_start_meets_directions_that_are_new() -> None:
    eigenvalues = torch.linspace(-1, 3, 300, dtype=torch.float64)
    w, loss = quadratic(eigenvalues)
    instrument = Curvature(loss, [w])
    instrument.measure()
    # Orthogonal to both old ends, a new top and a new bottom.
    eigenvalues[140], eigenvalues[150] = 3.5, -1.2
    reading = instrument.measure()
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((-1.2, 3.5), rel=1e-3)


def test_the_preconditioned_hessian_has_a_warm_start_of_its_own() -> None:
    w, loss = quadratic(torch.linspace(1, 3, 300, dtype=torch.float64))
    scales = [torch.linspace(1, 2, 300, dtype=torch.float64)]
    instrument = Curvature(loss, [w])
    for _ in range(2):
        assert instrument.measure(tolerance=1e-3).lambda_max == pytest.approx(3, rel=1e-3)
        reading = instrument.measure(preconditioner=scales, tolerance=1e-3)
        assert reading.lambda_max == pytest.approx(12, rel=1e-3)


def test_the_same_seed_gives_the_same_bits() -> None:
    model, loss = problem("mlp", torch.float32)
    one, two = (Curvature(loss, list(model.parameters()), seed=3).measure() for _ in range(2))
    assert one == two


# --- parameters that take no part, and Hessians that end early


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


def test_thawing_a_layer_starts_anew() -> None:
    model, loss = problem("mlp", torch.float64)
    first, *others = model.parameters()
    instrument = Curvature(loss, [first, *others])
    first.requires_grad_(False)
    assert instrument.measure().parameters == sum(p.numel() for p in others)
    first.requires_grad_(True)
    reading = instrument.measure(tolerance=1e-3)
    assert reading.lambda_max == pytest.approx(float(twin_eigenvalues("mlp")[-1]), rel=1e-4)


@pytest.mark.parametrize("index", [False, True])
def test_a_parameter_that_the_loss_is_linear_in_has_curvature_zero(index: bool) -> None:
    curved, linear = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    reading = Curvature(lambda: curved.square().sum() + linear.sum(), [curved, linear]).measure(index=index)
    assert reading.parameters == 6
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((0, 2), abs=1e-12)
    flat = Curvature(lambda: linear.sum(), [linear]).measure(index=index)
    assert (flat.lambda_min, flat.lambda_max, flat.converged) == (0, 0, True)


def test_when_nothing_takes_part_the_reading_is_nan() -> None:
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    unused = nn.Parameter(torch.ones(3))
    for loss in (lambda: frozen.square().sum(), lambda: (unused * 0).sum().detach()):
        reading = Curvature(loss, [frozen, unused]).measure(index=True)
        assert math.isnan(reading.lambda_max)
        assert not reading.converged
        assert (reading.parameters, reading.products, reading.negative_fraction) == (0, 0, None)


@pytest.mark.parametrize("index", [False, True])
def test_a_run_that_blew_up_gives_nan_and_not_an_error(index: bool) -> None:
    model, loss = problem("mlp", torch.float32)
    next(model.parameters()).data.fill_(math.nan)
    reading = Curvature(loss, list(model.parameters())).measure(index=index)
    assert math.isnan(reading.lambda_max)
    assert math.isnan(reading.lambda_min)
    assert not reading.converged
    assert reading.negative_fraction is None


def test_few_distinct_eigenvalues_end_lanczos_early_and_exactly() -> None:
    for values in ([1.0], [-2.0, 5.0], [-1.0, 0.0, 4.0]):
        w, loss = quadratic(torch.tensor(values).double().repeat_interleave(30))
        reading = Curvature(loss, [w]).measure(tolerance=1e-9)
        assert reading.products <= len(values) + 1
        assert reading.converged
        assert (reading.lambda_min, reading.lambda_max) == pytest.approx((values[0], values[-1]), rel=1e-9)


# --- what step size the curvature allows


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
def test_sgd_converges_just_under_its_limit_and_diverges_just_over(formula: str, lr: float) -> None:
    def make(w: nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.SGD([w], lr=lr, **SGDS[formula])

    limit = stability_limit(make(nn.Parameter(torch.ones(1))), lr)
    assert limit is not None
    assert (limit.formula, limit.preconditioned) == (formula, False)
    assert run_along(make, [0.1 * limit.lambda_max, 0.99 * limit.lambda_max]) < 1e-6
    assert run_along(make, [0.1 * limit.lambda_max, 1.01 * limit.lambda_max]) > 1e6


def frozen_adaptive(kind: str, w: nn.Parameter, squares: Tensor, lr: float) -> torch.optim.Optimizer:
    """torch's own optimizer with its second moment held still; Adam's at a step where bias correction has ended."""
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
def test_an_adaptive_optimizer_turns_at_the_measured_preconditioned_curvature(kind: str, constant: float) -> None:
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


def test_the_preconditioner_is_what_the_next_steps_divide_by() -> None:
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


def test_what_the_optimizer_does_not_hold_is_not_moved_and_has_scale_zero() -> None:
    held, other, never = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.Adam([held, never])
    held.grad = torch.tensor([1.0, 0.5])
    optimizer.step()
    scales = preconditioner(optimizer, [other, held, never])
    assert scales is not None
    assert [bool((s > 0).all()) for s in scales] == [False, True, False]
    assert float(scales[0].sum() + scales[2].sum()) == 0
    assert other not in optimizer.state


def test_where_no_limit_is_known_none_is_claimed() -> None:
    def w() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(1))]

    class Mine(torch.optim.SGD):
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
        Mine(w()),
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
    seen = []
    for step in range(1200):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        if step % 40 == 0:
            seen.append(instrument.measure().lambda_max / limit.lambda_max)
    assert seen[0] < 0.5
    assert sum(seen[-10:]) / 10 == pytest.approx(1, abs=0.1)


# --- the run is not disturbed


def test_measuring_leaves_the_run_bitwise_the_same() -> None:
    def losses(*, measuring: bool) -> list[float]:
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(0.3), nn.Linear(10, 4))
        x, y = torch.randn(32, 6), torch.randint(4, (32,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        # In training mode on purpose: the dropout draws random numbers.
        instrument = Curvature(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
        told = []
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
            told.append(loss.item())
        return told

    assert losses(measuring=True) == losses(measuring=False)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_weights_gradients_random_numbers_and_settings_stay(name: str) -> None:
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


def test_it_measures_where_gradients_are_switched_off() -> None:
    model, loss = problem("mlp", torch.float32)
    with torch.no_grad():
        reading = Curvature(loss, list(model.parameters())).measure()
        assert not torch.is_grad_enabled()
    assert reading.converged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_on_a_gpu_the_reading_is_the_same_and_its_random_numbers_stay(name: str) -> None:
    true = twin_eigenvalues(name)
    model, loss = problem(name, torch.float64, device="cuda")

    def drawing() -> Tensor:
        return loss() + 0 * torch.rand((), device="cuda")

    random = torch.cuda.get_rng_state()
    reading = Curvature(drawing, list(model.parameters())).measure(tolerance=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert (reading.lambda_min, reading.lambda_max) == pytest.approx((float(true[0]), float(true[-1])), rel=1e-6)
