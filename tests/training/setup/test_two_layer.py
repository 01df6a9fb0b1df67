"""The two-layer net: its loss, its modes one after the other, and its saddles."""

from __future__ import annotations

import math

import pytest
import torch

from tui_descent.dashboard.pictures.index import path_of
from tui_descent.dashboard.pictures.modes import curves_of
from tui_descent.protocol.task_pictures import IndexPicture, ModesPicture
from tui_descent.scenario import presets
from tui_descent.scenario.spec import ActivationSpec, TwoLayerModel
from tui_descent.training.probes.index_search import critical_point, flat_loss, index_at, weights_of
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.setup.nets.two_layer import TwoLayerNet
from tui_descent.training.task_pictures.painters import painter_of


def made(name: str, seed: int) -> Setup:
    _, scenario = presets.find(name, overrides=[f"run.seed={seed}"])
    return build(scenario, on=torch.device("cpu"))


def step(setup: Setup, number: int) -> None:
    assert setup.path is not None
    setup.path.add(number)
    loss = setup.loss()
    setup.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    setup.optimizer.step()


def spearman(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; ties have their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        ordered = sorted(values)
        return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]

    x, y = ranks(a), ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_loss_and_strengths_equal_the_closed_form(activation: str) -> None:
    phi = ActivationSpec(name=activation)  # type: ignore[arg-type]
    spec = TwoLayerModel(width=5, singular_values=(3.0, 1.0), std=0.3, activation=phi)
    net = TwoLayerNet(spec, torch.Generator().manual_seed(3)).double()
    target = net.left @ torch.diag(torch.tensor([3.0, 1.0]).double()) @ net.right.T
    hidden = net.first.weight if activation == "identity" else net.first.weight.tanh()
    product = net.second.weight @ hidden
    assert net().item() == pytest.approx((product - target).square().sum().item() / 2, rel=1e-12)
    strengths = [(net.left[:, k] @ product @ net.right[:, k]).item() for k in range(2)]
    assert net.strengths() == pytest.approx(strengths, rel=1e-12)
    assert torch.linalg.svdvals(target)[:3].tolist() == pytest.approx([3.0, 1.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in (1, 2))])
def test_time_to_learn_a_mode_is_inversely_proportional_to_its_strength(seed: int) -> None:
    setup, half = made("saddle-to-saddle", seed), dict[int, int]()
    net = setup.model
    assert isinstance(net, TwoLayerNet)
    for number in range(1000):
        for mode, (strength, target) in enumerate(zip(net.strengths(), net.singular_values, strict=True)):
            if strength >= target / 2:
                half.setdefault(mode, number)
        step(setup, number)
    assert [*half] == [0, 1, 2, 3], "the strongest first"
    products = [half[mode] * target for mode, target in enumerate(net.singular_values)]
    mean = sum(products) / len(products)
    assert all(abs(product / mean - 1) < 0.15 for product in products), products
    assert 400 < mean < 510


def test_picture_shows_the_modes_over_time() -> None:
    setup = made("saddle-to-saddle", 0)
    for number in range(200):
        step(setup, number)
    picture = painter_of(setup).picture(40, 10)
    assert isinstance(picture, ModesPicture)
    steps, curves = curves_of(picture)
    assert steps == list(range(201))
    assert curves[0][0] == pytest.approx(0.0, abs=1e-6)
    assert curves[0][-1] == pytest.approx(4.0, abs=0.01)
    assert abs(curves[3][-1]) < 0.01


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in (1, 2, 3, 4))])
def test_loss_and_index_fall_together_along_the_run_and_on_its_saddles(seed: int) -> None:
    setup = made("saddles-not-minima", seed)
    painter = painter_of(setup)
    picture = painter.picture(40, 10)
    for number in range(500):
        if number % 5 == 0:  # about as often as at the pace of the preset
            picture = painter.picture(40, 10)
        step(setup, number)
    assert isinstance(picture, IndexPicture)
    index, losses = (list(values) for values in zip(*path_of(picture), strict=True))
    assert spearman(index, losses) >= 0.9
    saddles = [point for point in picture.found if point.kind == "saddle"]
    assert len(saddles) >= 4
    assert spearman([p.index for p in picture.found], [p.loss for p in picture.found]) >= 0.9
    assert all((point.index > 0) == (point.kind == "saddle") for point in picture.found)


def test_what_the_search_finds_is_critical_and_its_index_is_that_of_the_hessian() -> None:
    setup = made("saddles-not-minima", 0)
    loss = flat_loss(setup.model)
    start = weights_of(setup.model)
    assert loss(start).item() == pytest.approx(setup.loss().item(), rel=1e-12)
    at = critical_point(loss, start)
    assert at is not None
    gradient = torch.autograd.functional.jacobian(loss, at)
    assert gradient.norm() < 1e-7
    hessian = torch.autograd.functional.hessian(loss, at)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert index_at(loss, at) == int((eigenvalues < -0.01 * eigenvalues.abs().max()).sum()) == 36
    assert critical_point(loss, torch.full_like(start, math.nan)) is None
