"""A two-layer linear net above the limit 2/λ of the learning rate: it grows first and settles where the loss is flat.

Lewkowycz et al. 2020: with λ₀ the first curvature, the loss grows and then converges for 2 < ηλ₀ < 4.
"""

from __future__ import annotations

import math

import pytest
import torch

from tui_descent.scenario import presets
from tui_descent.scenario.spec import TwoLayerModel
from tui_descent.scenario.toml import ScenarioError
from tui_descent.training.setup.nets.two_layer import TwoLayerNet

MODEL = TwoLayerModel(width=512, inputs=1, singular_values=(0.1,), std=0.1)
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in (1, 2, 3, 4))]


def curvature(net: TwoLayerNet) -> float:
    """λmax of a net whose error is almost 0: the sum of all squared weights."""
    return sum(float(p.detach().square().sum()) for p in net.parameters())


def descend(seed: int, product: float) -> tuple[list[float], float]:
    """Gradient descent with η = product/λ₀ for at most 150 steps: the losses, and the last curvature ÷ λ₀."""
    net = TwoLayerNet(MODEL, torch.Generator().manual_seed(seed)).double()
    first, losses = curvature(net), list[float]()
    rate = product / first
    for _ in range(150):
        loss = net()
        losses.append(loss.item())
        if not losses[-1] < 1e6:
            break
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return losses, curvature(net) / first


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("product", [1.0, 1.8])
def test_below_two_the_loss_only_falls_and_the_curvature_stays(seed: int, product: float) -> None:
    losses, kept = descend(seed, product)
    assert max(losses) == losses[0]
    assert losses[-1] < 1e-6 * losses[0]
    assert 0.9 < kept < 1.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("product", [2.3, 3.0, 3.6])
def test_between_two_and_four_the_loss_grows_and_settles_where_it_is_flatter(seed: int, product: float) -> None:
    losses, kept = descend(seed, product)
    assert max(losses) > 5 * losses[0]
    assert losses[-1] < 0.1 * max(losses)
    assert losses[-1] < 0.01
    assert kept < 2 / product, "the curvature is below 2/η"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("product", [4.2, 5.0])
def test_above_four_it_diverges(seed: int, product: float) -> None:
    losses, _ = descend(seed, product)
    assert math.isnan(losses[-1]) or losses[-1] > 1e6


def test_net_with_fewer_inputs_than_hidden_units_has_these_shapes() -> None:
    spec = TwoLayerModel(width=6, inputs=2, singular_values=(2.0, 1.0))
    net = TwoLayerNet(spec, torch.Generator().manual_seed(0)).double()
    assert net.first.weight.shape == (6, 2)
    assert net.second.weight.shape == (2, 6)
    assert len(net.strengths()) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("width=8, inputs=1, singular_values=[2.0, 1.0]", "allowed: at most model.inputs = 1"),
        ("width=1, inputs=2, singular_values=[2.0, 1.0]", "allowed: at most model.width = 1"),
        ("width=128, singular_values=[1.0]", "128 inputs 16,384; allowed: a product of at most 4,096"),
    ],
)
def test_sizes_that_do_not_fit_are_reported(model: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        presets.find("catapult", overrides=[f"model={{ name='two_layer', std=0.1, {model} }}"])
