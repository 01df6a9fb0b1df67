"""Norms against float64 NumPy: computed from the same tensors, and in a whole training written a second time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import WITHIN, Array, array, check_row, close, l2
from nets import OPTIMIZERS, digit_batches, loss_of, mlp
from numpy.typing import NDArray
from torch import Tensor, nn

from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.norms import RATIO_FLOOR, Norms
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.readings import COLUMNS
from tui_descent.training.watch.watch import Watch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5], ids=["plain", "clipped"])
def test_readings_equal_float64_norms_of_the_same_tensors(
    name: str, clip: float | None, dtype: torch.dtype, keeper: FakeKeeper
) -> None:
    net = mlp(dtype=dtype, depth=4, norm="layer")
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    optimizer = OPTIMIZERS[name](net.parameters())
    twins = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for batch in digit_batches(8, dtype=dtype):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:  # the reading is of what the optimizer receives
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            grads = [array(w.grad) for w in weights if w.grad is not None]
            total = l2(np.concatenate([array(p.grad).ravel() for p in net.parameters() if p.grad is not None]))
            before = [array(w) for w in weights]
            optimizer.step()
            twins.append((total, grads, before, [array(w) for w in weights]))
            run.step(loss)
        readings = keeper.readings()
    assert [reading.step for reading in readings] == list(range(8))
    for reading, (total, grads, before, after) in zip(readings, twins, strict=True):
        assert close(reading.global_grad_norm, total, WITHIN[dtype])
        assert len(grads) == len(before) == len(reading.ages) == 10
        for n, (g, w, w_next) in enumerate(zip(grads, before, after, strict=True)):
            check_row(reading, n, g, w, w_next, WITHIN[dtype])


class NumpyTraining:
    """The whole training by hand in NumPy: tanh MLP, cross-entropy, the optimizer's formula."""

    def __init__(self, weights: list[Array], optimizer: str, clip: float | None) -> None:
        self.w = [w.copy() for w in weights]
        self.m = [np.zeros_like(w) for w in weights]
        self.v = [np.zeros_like(w) for w in weights]
        self.t = 0
        self.optimizer, self.clip = optimizer, clip

    def gradients(self, x: Array, y: NDArray[np.int64]) -> tuple[float, list[Array]]:
        inputs, layers = [x], len(self.w) // 2
        for n in range(layers):
            z = inputs[-1] @ self.w[2 * n].T + self.w[2 * n + 1]
            inputs.append(np.tanh(z) if 0 < n < layers - 1 else z)
        z = inputs[-1] - inputs[-1].max(axis=1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = float(-np.log(p[rows, y]).mean())
        p[rows, y] -= 1
        delta = p / len(y)  # dL/dz of the head
        grads: list[Array] = []
        for n in reversed(range(layers)):
            if 0 < n < layers - 1:
                delta = delta * (1 - inputs[n + 1] ** 2)
            grads = [delta.T @ inputs[n], delta.sum(axis=0), *grads]
            delta = delta @ self.w[2 * n]
        return loss, grads

    def step(self, x: Array, y: NDArray[np.int64]) -> tuple[float, list[Array]]:
        loss, grads = self.gradients(x, y)
        if self.clip is not None:
            total = math.sqrt(sum(float((g**2).sum()) for g in grads))
            grads = [g * min(1.0, self.clip / (total + 1e-6)) for g in grads]
        self.t += 1
        for n, g in enumerate(grads):
            if self.optimizer == "sgd":
                self.w[n] = self.w[n] - 0.05 * g
                continue
            decay = 0.1 if self.optimizer == "adamw" else 0.0
            self.w[n] = self.w[n] * (1 - 1e-3 * decay)
            self.m[n] = 0.9 * self.m[n] + 0.1 * g
            self.v[n] = 0.999 * self.v[n] + 0.001 * g**2
            root = np.sqrt(self.v[n] / (1 - 0.999**self.t)) + 1e-8
            self.w[n] = self.w[n] - 1e-3 * self.m[n] / (1 - 0.9**self.t) / root
        return loss, grads


@pytest.mark.parametrize(("name", "clip"), [("sgd", None), ("adam", None), ("adamw", 0.3)])
def test_readings_equal_those_of_a_training_in_numpy(name: str, clip: float | None, keeper: FakeKeeper) -> None:
    net = mlp(dtype=torch.float64, depth=4, activation="tanh", init="lecun")
    twin = NumpyTraining([array(p) for p in net.parameters()], name, clip)
    optimizer = OPTIMIZERS[name](net.parameters())
    expected = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for x, y in digit_batches(10, dtype=torch.float64):
            loss = loss_of(net, (x, y))
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            run.step(loss)
            before = [w.copy() for w in twin.w]
            expected.append((*twin.step(array(x), y.numpy()), before, [w.copy() for w in twin.w]))
        readings, steps = keeper.readings(), keeper.steps()
    for reading, step, (loss_value, grads, before, after) in zip(readings, steps, expected, strict=True):
        assert math.isclose(step.loss, loss_value, rel_tol=1e-12)
        assert close(reading.global_grad_norm, l2(np.concatenate([g.ravel() for g in grads])), 1e-11)
        for n in range(6):  # stem, four blocks, head: each a weight and a bias
            # A tiny weight change keeps fewer digits of the weights: Δ/W ≈ 1e-3, and Adam divides by small roots.
            check_row(reading, n, grads[2 * n], before[2 * n], after[2 * n], 1e-9)


EXPONENTS = (-42, -38, -30, -25, -20, -17, -16, -15, -14, -13, -12, 0, 12, 13, 19, 20, 25, 30, 37)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_norms_are_right_at_every_size_of_float32(exponent: int) -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    for other in EXPONENTS:
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, dtype=torch.float64) * 10.0**other)
                p.grad = (torch.randn(p.shape, dtype=torch.float64) * 10.0**exponent).float()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        norms = Norms(structure(net).layers, list(net.parameters()))
        before = [array(layer.weight) for layer in net]  # type: ignore[arg-type]
        norms.before_update()
        optimizer.step()
        grad_norms, columns, *_ = norms.after_update().result()
        for p, norm in zip(net.parameters(), grad_norms, strict=True):
            assert close(norm, l2(array(p.grad)), 1e-5)  # type: ignore[arg-type]
        for row, (layer, old) in enumerate(zip(net, before, strict=True)):
            g, delta = l2(array(layer.weight.grad)), l2(array(layer.weight) - old)  # type: ignore[arg-type]
            n = old.size
            expected = [g, g / math.sqrt(n), l2(old), delta, delta / (l2(old) + RATIO_FLOOR)]
            for name, value in zip(COLUMNS, expected, strict=False):
                found = getattr(columns, name)[row]
                assert close(found, value, 1e-5) or (found == value == 0), (name, found, value, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_norms_are_summed_in_float32(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300)).to(dtype)
    for p in net.parameters():
        p.grad = torch.full_like(p, 1.0)
    norms = Norms(structure(net).layers, list(net.parameters()))
    norms.before_update()
    torch.optim.SGD(net.parameters(), lr=0.5).step()
    _, columns, *_ = norms.after_update().result()
    for found in columns.grad_norm:
        assert found == pytest.approx(300.0, rel=1e-5), "a half-precision sum stops growing"


def test_cosines_of_tiny_bfloat16_gradients_are_not_rounded_to_bfloat16() -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(20, 30)).to(torch.bfloat16)
    norms = Norms(structure(net).layers, list(net.parameters()))
    grads = []
    for step in range(2):
        for p in net.parameters():
            p.grad = (torch.randn(p.shape) * 1e-20).to(torch.bfloat16)
        grads.append([p.grad.double().ravel() for p in net.parameters() if p.grad is not None])
        norms.before_update(cosines=True, step=step)
        norms.remember(step)
    cosines = norms.after_update().result().cosines
    for n, pair in enumerate(zip(*grads, strict=True)):
        assert cosines[n] == pytest.approx(float(torch.cosine_similarity(*pair, dim=0, eps=0.0)), abs=1e-6)


def test_cosine_needs_the_gradient_of_the_step_before() -> None:
    net = nn.Linear(4, 4)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    norms = Norms(structure(net).layers, list(net.parameters()))
    norms.remember(step=3)
    for step, cosine in ((5, None), (4, 1.0)):
        norms.before_update(cosines=True, step=step)
        assert norms.after_update().result().global_cosine == (None if cosine is None else pytest.approx(cosine))


def test_nan_and_infinite_norms_are_reported_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for layer, value in zip(net, (math.nan, math.inf, 1.0), strict=True):
        for p in layer.parameters():
            p.grad = torch.full_like(p, value)
    norms = Norms(structure(net).layers, list(net.parameters()))
    norms.before_update()
    _, columns, *_ = norms.after_update().result()
    assert math.isnan(columns.grad_norm[0] or 0.0)
    assert math.isinf(columns.grad_norm[1] or 0.0)
    assert columns.grad_norm[2] == pytest.approx(4.0)
    assert columns.update_norm == [0.0, 0.0, 0.0]


def test_layer_without_gradient_has_no_gradient_reading(keeper: FakeKeeper) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        loss = net(torch.randn(3, 4)).square().sum()
        loss.backward()
        optimizer.step()
        run.step(loss)
        (reading,) = keeper.readings()
    assert reading.values["grad_norm"][0] is None
    assert reading.values["update_ratio"][0] is None
    assert reading.values["weight_norm"][0] is not None
    assert reading.values["grad_norm"][1] is not None
    assert reading.statuses == ["frozen", "used"]


@pytest.mark.parametrize("every", [1, 3, 10])
def test_readings_are_taken_at_exactly_the_requested_steps(every: int, keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=every, at=(5,))) as run:
        for batch in digit_batches(25):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        found = [reading.step for reading in keeper.readings()]
        assert [record.step for record in keeper.steps()] == list(range(25))
    assert found == sorted({*range(0, 25, every), 5})


@pytest.mark.parametrize("where", ["pre", "mid", "post"])
def test_layers_of_a_built_in_net_are_in_forward_order(where: str) -> None:
    net = mlp(norm={"name": "layer", "where": where}, depth=2)
    ran: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(digit_batches(1)[0][0])
    layers = [watched.layer.name for watched in structure(net).layers]
    assert layers == [name for name in ran if name in layers]
    assert len(layers) == 6


def test_layers_are_reported_in_forward_order_and_shared_weights_once(keeper: FakeKeeper) -> None:
    class OutOfOrder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 4)
            self.first = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.first.weight

        def forward(self, x: Tensor) -> Any:
            return self.last(self.norm(self.tied(self.first(x))))

    net = OutOfOrder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        loss = net(torch.randn(3, 4)).square().sum()
        loss.backward()
        optimizer.step()
        run.step(loss)
        (started, *_) = [event for event in keeper.events() if hasattr(event, "layers")]
    names = [layer.name for layer in started.layers]
    assert names == ["first", "tied", "norm", "last"]
    assert [layer.params for layer in started.layers] == [20, 4, 8, 20]
    assert started.parameters == 52
