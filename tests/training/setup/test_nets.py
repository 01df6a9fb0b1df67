"""Nets and surfaces compared with formulas written out in NumPy, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import mlp
from numpy.typing import NDArray
from torch import Tensor

from tui_descent.scenario.spec import InitSpec, MlpModel, SurfaceModel
from tui_descent.training.setup.build import build
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Skip
from tui_descent.training.setup.nets.mlp import Mlp, default_scale
from tui_descent.training.setup.nets.surface import FUNCTIONS, Surface

Array = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "softplus": lambda z: math.log1p(math.exp(z)),
    "identity": lambda z: z,
}


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


def normed(h: Array, kind: str) -> Array:
    """LayerNorm or RMSNorm with γ = 1 and β = 0, as in a new norm."""
    if kind == "layer":
        return (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    return h / np.sqrt((h**2).mean(axis=1, keepdims=True) + np.finfo(np.float64).eps)


def by_hand(
    net: Mlp,
    x: Array,
    *,
    activation: str = "relu",
    norm: str = "none",
    where: str = "pre",
    skip: tuple[float, float] | None = None,
) -> Array:
    """The MLP's outputs for x; `skip` is (gate, scale)."""
    w = {name: array(p) for name, p in net.named_parameters()}
    phi = np.vectorize(ACTIVATIONS[activation])
    h = x @ w["stem.weight"].T + w["stem.bias"]
    for n in range(len(net.blocks)):
        f = normed(h, norm) if norm != "none" and where == "pre" else h
        f = f @ w[f"blocks.{n}.linear.weight"].T + w[f"blocks.{n}.linear.bias"]
        if norm != "none" and where == "mid":
            f = normed(f, norm)
        f = phi(f)
        if norm != "none" and where == "post":
            f = normed(f, norm)
        if skip is None:
            h = f
        else:
            gate, scale = skip
            h = gate * h + (1 - gate + gate * scale) * f
    return h @ w["head.weight"].T + w["head.bias"]


def check(net: Mlp, **spec: Any) -> None:
    x = torch.randn(7, 64, dtype=torch.float64)
    np.testing.assert_allclose(array(net(x)), by_hand(net, array(x), **spec), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_the_formula_for_every_activation(activation: str) -> None:
    check(mlp(dtype=torch.float64, depth=4, activation=activation), activation=activation)


@pytest.mark.parametrize("where", ["pre", "mid", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_mlp_equals_the_formula_for_every_norm_and_place(norm: str, where: str) -> None:
    spec = {"norm": norm, "where": where, "activation": "tanh"}
    check(mlp(dtype=torch.float64, activation="tanh", norm={"name": norm, "where": where}), **spec)


@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_mlp_equals_the_formula_for_every_skip_gate(gate: float, scale: float) -> None:
    net = mlp(dtype=torch.float64, depth=5, activation="sigmoid", residual={"name": "on", "scale": scale})
    for block in net.blocks:
        block.skip.gate, block.skip.branch = gate, 1 - gate + gate * scale
    check(net, activation="sigmoid", skip=(gate, scale))


def test_mlp_equals_the_formula_with_norm_and_skip() -> None:
    net = mlp(dtype=torch.float64, norm={"name": "rms", "where": "pre"}, residual="on", depth=9)
    check(net, norm="rms", where="pre", skip=(1.0, 1 / 3))


def test_default_residual_scale_is_one_over_the_root_of_the_depth() -> None:
    assert default_scale(25) == pytest.approx(0.2)
    net = mlp(residual="on", depth=4)
    assert [block.skip.branch for block in net.blocks] == [0.5] * 4


def test_skip_with_gate_0_is_the_branch_and_with_gate_1_adds_the_input() -> None:
    x, fx = torch.randn(5, 8), torch.randn(5, 8)
    assert torch.equal(Skip(1.0, gate=0.0).combine(x, fx), fx)
    assert torch.equal(Skip(1.0, gate=0.0).combine(x * float("inf"), fx), fx)
    assert torch.equal(Skip(1.0).combine(x, fx), x + fx)
    assert torch.equal(Skip(0.25).combine(x, fx), x + 0.25 * fx)
    assert torch.allclose(Skip(0.625, gate=0.5).combine(x, fx), 0.5 * x + 0.625 * fx)


def test_skip_passes_the_gradient_around_the_branch() -> None:
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    Skip(0.25).combine(x, torch.zeros_like(x)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]


SURFACES: dict[str, tuple[Callable[..., float], Callable[..., tuple[float, ...]]]] = {
    "fragment": (lambda w: (2 * w - 3) ** 2, lambda w: (4 * (2 * w - 3),)),
    "bowl": (lambda x, y: (x * x + y * y) / 2, lambda x, y: (x, y)),
    "valley": (lambda x, y: (x * x + 100 * y * y) / 2, lambda x, y: (x, 100 * y)),
    "saddle": (lambda x, y: x * x - y * y + y**4 / 4, lambda x, y: (2 * x, y**3 - 2 * y)),
    "monkey_saddle": (
        lambda x, y: x**3 - 3 * x * y * y + (x * x + y * y) ** 2 / 4,
        lambda x, y: (3 * x * x - 3 * y * y + x * (x * x + y * y), -6 * x * y + y * (x * x + y * y)),
    ),
    "rosenbrock": (
        lambda x, y: (1 - x) ** 2 + 100 * (y - x * x) ** 2,
        lambda x, y: (-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)),
    ),
    "beale": (
        lambda x, y: sum((c - x * (1 - y**n)) ** 2 for n, c in enumerate((1.5, 2.25, 2.625), 1)),
        lambda x, y: (
            sum(-2 * (c - x * (1 - y**n)) * (1 - y**n) for n, c in enumerate((1.5, 2.25, 2.625), 1)),
            sum(2 * (c - x * (1 - y**n)) * x * n * y ** (n - 1) for n, c in enumerate((1.5, 2.25, 2.625), 1)),
        ),
    ),
    "himmelblau": (
        lambda x, y: (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
        lambda x, y: (
            4 * x * (x * x + y - 11) + 2 * (x + y * y - 7),
            2 * (x * x + y - 11) + 4 * y * (x + y * y - 7),
        ),
    ),
}


@pytest.mark.parametrize("name", SURFACES)
def test_surface_and_its_gradient_equal_the_closed_form(name: str) -> None:
    assert set(SURFACES) == set(FUNCTIONS)
    value, slope = SURFACES[name]
    generator = np.random.default_rng(0)
    for _ in range(50):
        point = tuple(generator.uniform(-3, 3, 1 if name == "fragment" else 2).tolist())
        surface = Surface(SurfaceModel(function=name, start=point))  # type: ignore[arg-type]
        loss = surface()
        loss.backward()
        assert math.isclose(loss.item(), value(*point), rel_tol=1e-12, abs_tol=1e-12)
        assert surface.w.grad is not None
        assert surface.w.grad.tolist() == pytest.approx(slope(*point), rel=1e-12, abs=1e-11)


@pytest.mark.parametrize(
    ("spec", "std"),
    [
        (InitSpec(name="he"), (2 / 300) ** 0.5),
        (InitSpec(name="he", gain=2.0), 2 * (2 / 300) ** 0.5),
        (InitSpec(name="xavier"), (2 / 500) ** 0.5),
        (InitSpec(name="lecun"), (1 / 300) ** 0.5),
        (InitSpec(name="normal", std=0.02), 0.02),
        (InitSpec(name="normal", std=0.02, gain=3.0), 0.06),
    ],
    ids=lambda s: f"{s.name} {s.gain:g}" if isinstance(s, InitSpec) else None,
)
def test_initial_weights_have_the_standard_deviation_of_the_formula(spec: InitSpec, std: float) -> None:
    weight = torch.empty(200, 300, dtype=torch.float64)
    parts.init_weight(weight, spec, torch.Generator().manual_seed(0))
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel())


def test_orthogonal_weights_are_orthogonal() -> None:
    weight = torch.empty(20, 30, dtype=torch.float64)
    parts.init_weight(weight, InitSpec(name="orthogonal", gain=3.0), torch.Generator().manual_seed(0))
    assert torch.allclose(weight @ weight.T, 9 * torch.eye(20, dtype=torch.float64), atol=1e-12)


def test_initial_bias_applies_only_to_blocks() -> None:
    net = mlp(init={"name": "he", "bias": -4.0}, depth=2)
    assert torch.equal(net.blocks[0].linear.bias, torch.full((16,), -4.0))
    assert not net.stem.bias.any()
    assert not net.head.bias.any()


def test_same_seed_gives_the_same_mlp_and_keeps_the_global_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = mlp(seed=1), mlp(seed=1), mlp(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(a.stem.weight, c.stem.weight)


def test_scenario_is_built_in_its_dtype_with_its_optimizer() -> None:
    from tui_descent.scenario import presets

    _, scenario = presets.find("healthy", overrides=["run.dtype=float64", "optimizer.lr=0.25"])
    setup = build(scenario, on=torch.device("cpu"))
    assert {p.dtype for p in setup.model.parameters()} == {torch.float64}
    assert isinstance(setup.optimizer, torch.optim.Adam)
    assert setup.optimizer.param_groups[0]["lr"] == 0.25
    assert isinstance(scenario.model, MlpModel)
    assert len(setup.model.blocks) == scenario.model.depth  # type: ignore[arg-type]
    first, again = setup.loss(), setup.replay_forward()
    assert torch.equal(first, again)
    assert not torch.equal(first, setup.loss())


def test_mse_loss_uses_one_hot_targets() -> None:
    from tui_descent.scenario import presets

    _, scenario = presets.find("healthy", overrides=["loss=mse", "run.dtype=float64"])
    setup = build(scenario, on=torch.device("cpu"))
    assert setup.batches is not None
    assert setup.loss_function is not None
    x, y = setup.batches.next()
    out = setup.model(x)
    wanted = ((array(out) - np.eye(10)[y.numpy()]) ** 2).mean()
    assert setup.loss_function(out, y).item() == pytest.approx(wanted, rel=1e-12)
