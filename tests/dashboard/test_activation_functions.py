"""The activation functions of the lens against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tui_descent.dashboard.activation_functions import FUNCTIONS, ActivationFunction, name_of
from tui_descent.protocol.lens import ActivationPart
from tui_descent.training.probes.lens_probe import parts_of
from tui_descent.training.steering.surgery.activation import Blend


def blend(t: float) -> Blend:
    made = Blend(nn.Sigmoid(), nn.GELU())
    made.t = t
    return made


MODULES: list[nn.Module] = [
    nn.ReLU(), nn.LeakyReLU(0.01), nn.LeakyReLU(0.3), nn.PReLU(init=0.2), nn.GELU(), nn.GELU(approximate="tanh"),
    nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.ELU(alpha=0.7), nn.Softplus(), nn.Softplus(2.0, threshold=5.0),
    nn.Identity(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(), nn.SELU(), nn.CELU(), nn.CELU(alpha=1.5),
    nn.Softsign(), nn.LogSigmoid(), blend(0.25),
]  # fmt: skip
# Kinks, tails, and values between them.
POINTS = [0.0, 1e-9, -1e-9, 3.0, -3.0, 6.0, 20.0, 20.5, -20.0, 40.0, -40.0, 300.0, -300.0, 800.0, -800.0]
POINTS += torch.linspace(-12, 12, 321, dtype=torch.float64).tolist()


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_functions_and_derivatives_agree_with_autograd(module: nn.Module) -> None:
    z = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    f = module.double()(z)
    (slopes,) = torch.autograd.grad(f.sum(), z)
    function = ActivationFunction(list(parts_of(module)))
    assert function.known
    assert [function.value(x) for x in POINTS] == pytest.approx(f.tolist(), rel=1e-12, abs=1e-12)
    rel = 1e-7 if isinstance(module, nn.Hardsigmoid) else 1e-12  # its derivative in torch is 1/6 in float32
    assert [function.slope(x) for x in POINTS] == pytest.approx(slopes.tolist(), rel=rel, abs=1e-12)


@pytest.mark.parametrize("module", MODULES, ids=repr)
@pytest.mark.parametrize("h", [4.0, 0.5, 2.0**-10])
def test_the_quotient_is_that_of_torchs_values(module: nn.Module, h: float) -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.float64)
    with torch.no_grad():
        wanted = (module.double()(x + h) - module.double()(x)) / h
    function = ActivationFunction(list(parts_of(module)))
    assert [function.quotient(z, h) for z in x.tolist()] == pytest.approx(wanted.tolist(), rel=1e-12, abs=1e-12 / h)


def test_every_function_is_tested() -> None:
    assert {part.name for module in MODULES for part in parts_of(module)} == set(FUNCTIONS)


def test_an_unknown_part_makes_the_function_unknown() -> None:
    assert not ActivationFunction([]).known
    assert not ActivationFunction([ActivationPart(name="from a newer version")]).known


def test_names() -> None:
    assert name_of([]) == ""
    assert name_of([ActivationPart(name="leaky_relu", parameters=(0.01,))]) == "leaky_relu 0.01"
    assert name_of([*parts_of(blend(0.25))]) == "sigmoid → gelu 25 %"
