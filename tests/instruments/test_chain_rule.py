"""Chain-rule factors, ledger, activations, cosines, local step and noise scale, each against an independent twin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import SurfaceAgain
from nets import OPTIMIZERS, digit_batches, loss_of, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.activation_derivatives import FORMULAS, derivative
from tui_descent.instruments.activations import DEAD_SAMPLES, Activations
from tui_descent.instruments.block_boundaries import BlockBoundaries
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.same_batch import NoiseScale, SameBatch, gradient
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LedgerTaken, Measured
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.watch.watch import Watch

FORMS: list[dict[str, Any]] = [
    {"activation": "sigmoid"},
    {"activation": "relu", "norm": {"name": "layer", "where": "mid"}},
    {"activation": "gelu", "norm": {"name": "rms", "where": "pre"}, "residual": "on"},
    {"activation": "tanh", "norm": {"name": "layer", "where": "post"}, "residual": {"name": "on", "scale": 0.3}},
    {"activation": "silu", "norm": {"name": "layer", "where": "pre"}},
    {"activation": "softplus", "residual": "on"},
    {"activation": {"name": "leaky_relu", "slope": 0.2}, "norm": {"name": "rms", "where": "mid"}},
    {"activation": "elu", "norm": {"name": "rms", "where": "post"}},
]


def boundary_norms_by_hand(net: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """‖dL/dh‖ at every boundary: the blocks one after the other, then one `autograd.grad`."""
    at = [net.stem(x)]  # type: ignore[operator]
    for block in net.blocks:  # type: ignore[union-attr]
        at.append(block(at[-1]))
    loss = F.cross_entropy(net.head(at[-1]), y)  # type: ignore[operator]
    return [float(np.linalg.norm(g.detach().double().numpy())) for g in torch.autograd.grad(loss, at)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_factors_equal_autograd_block_by_block(form: dict[str, Any], dtype: torch.dtype) -> None:
    net = mlp(dtype=dtype, depth=6, **form)
    boundaries = BlockBoundaries(structure(net).units)
    x, y = digit_batches(1, dtype=dtype)[0]
    boundaries.attach()
    loss_of(net, (x, y)).backward()
    boundaries.detach()
    factors = boundaries.factors().result()
    wanted = boundary_norms_by_hand(net, x, y)
    assert len(factors) == 6
    within = 1e-5 if dtype == torch.float32 else 1e-12
    for n, factor in enumerate(factors):
        assert factor == pytest.approx(wanted[n] / wanted[n + 1], rel=within)
    assert math.prod(f for f in factors if f) == pytest.approx(wanted[0] / wanted[-1], rel=10 * within)


def test_orthogonal_linear_net_has_factors_of_one() -> None:
    net = mlp(depth=8, activation="identity", init="orthogonal")
    boundaries = BlockBoundaries(structure(net).units)
    boundaries.attach()
    loss_of(net, digit_batches(1)[0]).backward()
    boundaries.detach()
    assert boundaries.factors().result() == pytest.approx([1.0] * 8, abs=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_ledger_agrees_with_autograd_and_shows_a_corrupted_weight(form: dict[str, Any]) -> None:
    net = mlp(depth=5, **form)
    for block in net.blocks:
        if block.norm is not None:  # with γ = 1 a missing γ would not show
            nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    batch = digit_batches(1)[0]
    blocks = [(u.name, u.module) for u in structure(net).units]

    def entries(*, corrupt: bool) -> list[float | None]:
        ledger = ChainRuleLedger(blocks)
        ledger.attach()
        loss_of(net, batch).backward()
        ledger.detach()
        if corrupt:
            with torch.no_grad():
                net.blocks[2].linear.weight.mul_(1.05)
        found = ledger.entries().result()
        assert found[0].product == pytest.approx(math.prod(e.factor or math.nan for e in found), rel=1e-9)
        return [e.discrepancy for e in found]

    assert all(off is not None and off <= 1e-5 for off in entries(corrupt=False))
    corrupted = entries(corrupt=True)
    assert corrupted[2] is not None
    assert corrupted[2] >= 1e-2
    assert all(off is not None and off <= 1e-5 for n, off in enumerate(corrupted) if n != 2)


@pytest.mark.parametrize("kind", FORMULAS, ids=lambda kind: kind.__name__)
def test_every_derivative_formula_equals_autograd(kind: type[nn.Module]) -> None:
    module = kind()
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(module(z).sum(), z)
    found = derivative(module, z.detach())
    assert found is not None
    away = z.detach().abs() > 1e-9  # at a kink both sides are right
    assert torch.allclose(found[away], wanted[away], rtol=1e-10, atol=1e-12)


def read_activations(net: nn.Module, x: Tensor) -> dict[int, Any]:
    net_structure = structure(net)
    activations = Activations(net_structure.activations, net_structure.layers)
    activations.attach()
    net(x)
    activations.detach()
    return activations.read().result()


@pytest.mark.parametrize("inplace", [False, True])
def test_dead_units_mean_and_std_equal_numpy(inplace: bool) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(inplace=inplace), nn.Linear(50, 40), nn.ReLU(inplace=inplace))
    with torch.no_grad():
        net[0].bias.copy_(torch.linspace(-6, 1, 50))  # type: ignore[operator]
    x = torch.randn(DEAD_SAMPLES, 8)
    readings = read_activations(net, x)
    w = [p.detach().double().numpy() for p in net.parameters()]
    z1 = x.double().numpy() @ w[0].T + w[1]
    a1 = np.maximum(z1, 0)
    z2 = a1 @ w[2].T + w[3]
    for row, z in ((0, z1), (1, z2)):
        a = np.maximum(z, 0)
        assert readings[row].dead_fraction == pytest.approx(float((z <= 0).all(axis=0).mean()), abs=1e-9)
        assert readings[row].mean == pytest.approx(float(a.mean()), rel=1e-5)
        assert readings[row].std == pytest.approx(float(a.std()), rel=1e-5)
        assert readings[row].saturated_fraction is None, "half of a healthy ReLU's outputs are 0"
    assert 0.1 < readings[0].dead_fraction < 0.9


def test_dead_units_need_enough_samples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 30), nn.ReLU())
    net_structure = structure(net)
    activations = Activations(net_structure.activations, net_structure.layers)
    xs = [torch.randn(DEAD_SAMPLES // 4, 8) for _ in range(4)]
    fractions = []
    for x in xs:
        activations.attach()
        net(x)
        activations.detach()
        fractions.append(activations.read().result()[0].dead_fraction)
    assert fractions[:3] == [None] * 3
    z = net[0](torch.cat(xs))
    assert fractions[3] == pytest.approx(float((z <= 0).all(dim=0).double().mean()))


@pytest.mark.parametrize(("kind", "greatest"), [(nn.Sigmoid, 0.25), (nn.Tanh, 1.0)])
def test_saturated_fraction_equals_numpy(kind: type[nn.Module], greatest: float) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 32), kind(), nn.Linear(32, 2)).double()
    x = 6 * torch.randn(300, 6, dtype=torch.float64)
    found = read_activations(net, x)[0].saturated_fraction
    a = net[1](net[0](x)).detach().numpy()
    derivatives = a * (1 - a) if kind is nn.Sigmoid else 1 - a**2
    assert found == pytest.approx(float((derivatives < 0.1 * greatest).mean()), abs=1e-12)
    assert 0.2 < found < 0.9


def test_convolution_channel_is_one_unit() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.0, -1e3, 0.0, -1e3]))  # type: ignore[operator]
    assert read_activations(net, torch.randn(64, 1, 8, 8))[0].dead_fraction == 0.5


@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e18])
def test_cosines_equal_numpy_at_any_gradient_size(scale: float, keeper: FakeKeeper) -> None:
    net = mlp(depth=3, activation="tanh")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3 / scale)
    wanted, previous = [], None
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for batch in digit_batches(4):
            loss = scale * loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            now = [p.grad.double().numpy().ravel() for p in net.parameters()]  # type: ignore[union-attr]
            wanted.append(None if previous is None else (now, previous))
            previous = now
            optimizer.step()
            run.step(loss)
        readings = keeper.readings()
    assert readings[0].global_cosine is None
    for reading, pair in zip(readings[1:], wanted[1:], strict=True):
        assert pair is not None
        new, old = (np.concatenate(side) for side in pair)
        cosine = float(new @ old / np.linalg.norm(new) / np.linalg.norm(old))
        assert reading.global_cosine == pytest.approx(cosine, abs=1e-5)
        a, b = pair[0][0], pair[1][0]
        stem = float((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)))
        assert reading.values["grad_cosine"][0] == pytest.approx(stem, abs=1e-5)


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.125, 0.2, 0.24, 0.26])
def test_local_step_and_cosine_have_their_closed_forms_on_a_parabola(lr: float, keeper: FakeKeeper) -> None:
    net = Surface(SurfaceModel())
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    again = SurfaceAgain(net)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1), replay=again) as run:
        for _ in range(5):
            loss = net()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        alphas = [e.value for e in keeper.events(Measured) if e.name == "local_step"]
        cosines = [r.global_cosine for r in keeper.readings()]
    first = alphas[0]
    assert first == pytest.approx(8 * lr - 1, rel=1e-9, abs=1e-9)
    if lr != 0.125:  # there one step reaches the minimum, and later cosines are 0/0
        assert cosines[1:] == pytest.approx([math.copysign(1.0, 1 - 8 * lr)] * 4)


def test_noise_scale_equals_that_of_known_noise() -> None:
    # Samples with gradient G + noise of covariance σ²I in n dimensions: tr Σ/‖G‖² = nσ²/‖G‖².
    rng = np.random.default_rng(0)
    n, batch, sigma = 400, 64, 0.5
    g = rng.normal(size=n)
    g *= 3 / np.linalg.norm(g)
    scale = NoiseScale()
    for _ in range(60):
        samples = g + sigma * rng.normal(size=(batch, n))
        halves = [samples[: batch // 2].mean(axis=0), samples[batch // 2 :].mean(axis=0)]
        whole = samples.mean(axis=0)
        scale.add(float(whole @ whole), float(sum(h @ h for h in halves)) / 2, batch)
    assert scale.value == pytest.approx(n * sigma**2 / 9, rel=0.25)


class CurrentBatch:
    def __init__(self, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        self.net, self.batch = net, batch

    def replay_forward(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def loss_of_part(self, where: slice) -> Tensor | None:
        x, y = self.batch
        return loss_of(self.net, (x[where], y[where]))

    def size(self) -> int:
        return len(self.batch[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_local_step_equals_the_ratio_of_slopes(name: str) -> None:
    net = mlp(dtype=torch.float64, depth=3)
    batch = digit_batches(1, dtype=torch.float64)[0]
    optimizer = OPTIMIZERS[name](net.parameters())
    again = SameBatch(net, CurrentBatch(net, batch))
    loss_of(net, batch).backward()
    grads = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
    before = [p.detach().clone() for p in net.parameters()]
    again.before_update()
    optimizer.step()
    found = again.after_update().result()
    after = gradient(loss_of(net, batch), list(net.parameters()))
    moves = [(p.detach() - w).numpy() for p, w in zip(net.parameters(), before, strict=True)]
    start = math.fsum(float((g.numpy() * m).sum()) for g, m in zip(grads, moves, strict=True))
    end = math.fsum(float((g.numpy() * m).sum()) for g, m in zip(after, moves, strict=True) if g is not None)
    assert found["local_step"] == pytest.approx(-end / start, rel=1e-10)


def test_fixed_interval_readings_include_the_ledger(keeper: FakeKeeper) -> None:
    net = mlp(depth=3, activation="gelu", residual="on")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=2)) as run:
        for batch in digit_batches(7):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        ledgers = keeper.events(LedgerTaken)
    # At step 0 the layers of a user's net are not known before the pass.
    assert [ledger.step for ledger in ledgers] == [2, 4, 6]
    for ledger in ledgers:
        assert len(ledger.entries) == 3
        assert all(e.discrepancy is not None and e.discrepancy <= 1e-5 for e in ledger.entries)


def test_empty_batch_has_no_activations() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net_structure = structure(net)
    activations = Activations(net_structure.activations, net_structure.layers)
    activations.attach()
    net(torch.zeros(0, 4))
    activations.detach()
    assert activations.read().result() == {}
