"""Every reading of an MLP, a conv net and a transformer against autograd and float64 NumPy, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import WITHIN, Array, array, check_row, close, l2, own_weight
from nets import OPTIMIZERS, AttentionBlock, ConvNet, PixelTransformer, digit_batches, loss_of, mlp
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LedgerTaken, Measured, ReadingsTaken, RunStarted
from tui_descent.training.setup.nets.mlp import Mlp
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

NETS: dict[str, Any] = {
    "mlp": lambda: mlp(depth=4, activation="tanh", norm={"name": "layer", "where": "mid"}, residual="on"),
    "conv": ConvNet,
    "transformer": PixelTransformer,
}
EVERY = 7
STEPS = 16


def units_of(net: nn.Module) -> list[nn.Module]:
    if isinstance(net, PixelTransformer | Mlp):
        return list(net.blocks)
    return [m for m in net.body if list(m.parameters())]  # type: ignore[union-attr]


def boundary_norms(net: nn.Module, batch: tuple[Tensor, Tensor]) -> list[float]:
    """‖dL/dh‖ at the input of every unit and after the last, by one call of autograd."""
    at: list[Tensor] = []

    def entered(_: nn.Module, args: Any) -> Any:
        at.append(args[0] if args[0].requires_grad else args[0].clone().requires_grad_())
        return (at[-1],)

    units = units_of(net)
    handles = [unit.register_forward_pre_hook(entered) for unit in units]
    handles.append(units[-1].register_forward_hook(lambda _, __, out: at.append(out)))
    loss = loss_of(net, batch)
    for handle in handles:
        handle.remove()
    return [l2(array(g)) for g in torch.autograd.grad(loss, at)]


def activations(net: nn.Module, batch: tuple[Tensor, Tensor]) -> list[tuple[nn.Module, Array, Array]]:
    """(module, input, output) of every activation in a forward pass."""
    seen: list[tuple[nn.Module, Array, Array]] = []
    inputs: dict[nn.Module, Array] = {}
    kinds = (nn.ReLU, nn.Tanh, nn.GELU)
    bends = [m for m in net.modules() if isinstance(m, kinds)]
    handles = [m.register_forward_pre_hook(lambda m, a: inputs.update({m: array(a[0]).copy()})) for m in bends]
    handles += [
        m.register_forward_hook(lambda m, _, out: seen.append((m, inputs[m], array(out).copy()))) for m in bends
    ]
    with torch.no_grad():
        net(batch[0])
    for handle in handles:
        handle.remove()
    return seen


def check_activations(reading: ReadingsTaken, seen: list[tuple[nn.Module, Array, Array]], within: float) -> None:
    rows = [n for n, v in enumerate(reading.values["activation_mean"]) if v is not None]
    assert len(rows) == len(seen)
    for n, (module, z, a) in zip(rows, seen, strict=True):
        values = {name: column[n] for name, column in reading.values.items()}
        assert values["activation_mean"] == pytest.approx(a.mean(), rel=within, abs=within * a.std())
        assert close(values["activation_std"], float(a.std()), within)
        if isinstance(module, nn.Tanh):
            assert values["saturated_fraction"] == pytest.approx(float((1 - np.tanh(z) ** 2 < 0.1).mean()), abs=1e-12)
        if isinstance(module, nn.ReLU):
            units = (z > 0).swapaxes(1, -1).reshape(-1, z.shape[1]).any(axis=0)
            assert values["dead_fraction"] == pytest.approx(float((~units).mean()), abs=1e-12)


@dataclass(frozen=True)
class Expected:
    """The numbers of one step by autograd and NumPy."""

    raw: list[Array]  # gradients before clipping
    received: list[Array]  # as the optimizer received them
    previous: list[Array]
    weights: dict[str, tuple[Array, Array]]  # by layer, before and after the step
    chain: list[float]
    seen: list[tuple[nn.Module, Array, Array]]
    local_step: float
    noise_scale: float | None


class CurrentBatch:
    """The batch of the step in progress, for the watched net or its twin."""

    def __init__(self, net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        self.net, self.batch = net, batch

    def replay_forward(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def loss_of_part(self, where: slice) -> Tensor:
        return loss_of(self.net, (self.batch[0][where], self.batch[1][where]))

    def size(self) -> int:
        return len(self.batch[0])


def gradients(net: nn.Module, loss: Tensor) -> Array:
    """The whole gradient, flat."""
    found = torch.autograd.grad(loss, list(net.parameters()))
    return np.concatenate([array(g).ravel() for g in found])


def draws(net: nn.Module, batch: CurrentBatch) -> tuple[float, float]:
    """(‖G‖², tr Σ) of one batch from its two halves: McCandlish et al. 2018, App. A, for b = B/2."""
    half = batch.size() // 2
    first, second = (gradients(net, batch.loss_of_part(slice(n * half, (n + 1) * half))) for n in (0, 1))
    # E‖g_b‖² = ‖G‖² + tr Σ/b: the noise cancels in the product of the halves, the signal in their difference.
    return float(first @ second), float(((first - second) ** 2).sum()) * half / 2


def clipped(grads: list[Array], limit: float | None) -> list[Array]:
    size = l2(np.concatenate([g.ravel() for g in grads]))
    return grads if limit is None or size <= limit else [g * (limit / size) for g in grads]


def net_of(kind: str, dtype: torch.dtype) -> nn.Module:
    net = NETS[kind]().to(dtype)
    if kind == "conv":
        with torch.no_grad():
            net.body[0].bias[1] = -50.0  # a dead channel
            net.body[2].weight.mul_(8)  # saturates some tanh outputs
    assert isinstance(net, nn.Module)
    return net


class Trained:
    """A net trained with instruments; at each step with a reading, the expected numbers are computed from a twin."""

    def __init__(self, kind: str, name: str, clip: float | None, dtype: torch.dtype, keeper: FakeKeeper) -> None:
        self.net, self.keeper, self.clip = net_of(kind, dtype), keeper, clip
        self.twin = NETS[kind]().to(dtype)  # a net without instruments
        self.named = {name: own_weight(m) for name, m in self.net.named_modules() if list(m.parameters(recurse=False))}
        self.optimizer = OPTIMIZERS[name](self.net.parameters())
        self.expected: dict[int, Expected] = {}
        self._draws: list[tuple[float, float]] = []
        self._dtype = dtype

    def run(self) -> None:
        batches = digit_batches(STEPS, size=64, dtype=self._dtype)
        steering = Steering(self.net, self.optimizer, clip=self.clip)
        again = CurrentBatch(self.net, batches[0])
        sampler = Sampler(every=EVERY)
        previous: list[Array] = []
        with Watch(
            self.net, self.optimizer, link=self.keeper.link, sampler=sampler, steering=steering, replay=again
        ) as run:
            for step, batch in enumerate(batches):
                again.batch = batch
                self.twin.load_state_dict(self.net.state_dict())
                loss = loss_of(self.net, batch)
                self.optimizer.zero_grad()
                loss.backward()
                raw = [array(p.grad).copy() for p in self.net.parameters()]
                if step % EVERY == 0:
                    self.expected[step] = self._expect(batch, raw, previous)
                else:
                    self.optimizer.step()
                previous = clipped(raw, self.clip)
                run.step(loss)

    def _expect(self, batch: tuple[Tensor, Tensor], raw: list[Array], previous: list[Array]) -> Expected:
        twin, again = self.twin, CurrentBatch(self.twin, batch)
        chain, seen = boundary_norms(twin, batch), activations(twin, batch)
        self._draws.append(draws(twin, again))
        before = {name: array(w).copy() for name, w in self.named.items()}
        start = np.concatenate([array(p).ravel() for p in self.net.parameters()])
        self.optimizer.step()
        move = np.concatenate([array(p).ravel() for p in self.net.parameters()]) - start
        twin.load_state_dict(self.net.state_dict())
        slope = float(np.concatenate([g.ravel() for g in raw]) @ move)
        ages = 0.9 ** np.arange(len(self._draws))[::-1]
        signal, noise = (float(ages @ [draw[n] for draw in self._draws]) for n in (0, 1))
        return Expected(
            raw,
            clipped(raw, self.clip),
            previous,
            {name: (before[name], array(w).copy()) for name, w in self.named.items()},
            chain,
            seen,
            -float(gradients(twin, again.replay_forward()) @ move) / slope,
            noise / signal if signal > 0 else None,
        )


def whole(grads: list[Array]) -> Array:
    return np.concatenate([g.ravel() for g in grads])


def cosine(a: Array, b: Array) -> float | None:
    sizes = l2(a) * l2(b)
    return float(a.ravel() @ b.ravel()) / sizes if sizes else None


CASES = [("sgd", None), ("adam", None), ("adamw", 0.3)]
pairs = pytest.mark.parametrize(("name", "clip"), CASES, ids=["sgd", "adam", "adamw, clip, decay"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dtypes
@pairs
@pytest.mark.parametrize("kind", NETS)
def test_all_readings_equal_their_twins_step_by_step(
    kind: str, name: str, clip: float | None, dtype: torch.dtype, keeper: FakeKeeper
) -> None:
    trained = Trained(kind, name, clip, dtype, keeper)
    trained.run()
    within = WITHIN[dtype]
    events = keeper.events()
    (started,) = [e for e in events if isinstance(e, RunStarted)]
    readings = keeper.readings()
    names = [layer.name for layer in started.layers]
    wanted_names = list(trained.named)
    assert sorted(names) == sorted(set(wanted_names) - {"head"}) if kind == "transformer" else names == wanted_names
    assert [reading.step for reading in readings] == sorted(trained.expected) == [0, 7, 14]
    places = {id(p): n for n, p in enumerate(trained.net.parameters())}
    for reading in readings:
        wanted = trained.expected[reading.step]
        check_whole(reading, wanted, clip, within)
        check_rare(reading.step, [e for e in events if isinstance(e, Measured)], wanted, within)
        for n, layer in enumerate(names):
            place = places[id(trained.named[layer])]
            before, after = wanted.weights[layer]
            # A small update of float32 weights has few digits, but both sides compute it from the same weights.
            check_row(reading, n, wanted.received[place], before, after, within)
            if reading.step:
                found = reading.values["grad_cosine"][n]
                assert found == pytest.approx(cosine(wanted.received[place], wanted.previous[place]), abs=within)
        if reading.step:  # at step 0 of a user's net the layers are not known before the pass
            check_chain(reading, wanted.chain, within, data_first=kind == "conv")
            check_activations(reading, wanted.seen, within)
    if clip is not None:
        limits = [l2(whole(w.raw)) for w in trained.expected.values()]
        assert max(limits) > clip, "clipping must act at some step"


def check_whole(reading: ReadingsTaken, wanted: Expected, clip: float | None, within: float) -> None:
    assert close(reading.global_grad_norm, l2(whole(wanted.received)), within)
    if clip is None:
        assert reading.grad_norm_preclip is None
    else:
        assert close(reading.grad_norm_preclip, l2(whole(wanted.raw)), within)
    if reading.step:
        expected = cosine(whole(wanted.received), whole(wanted.previous))
        assert reading.global_cosine == pytest.approx(expected, abs=within)


def check_rare(step: int, events: list[Measured], wanted: Expected, within: float) -> None:
    found = {e.name: e.value for e in events if e.step == step}
    assert found["local_step"] == pytest.approx(wanted.local_step, rel=within, abs=within)
    assert found.get("noise_scale") == pytest.approx(wanted.noise_scale, rel=10 * within)


def check_chain(reading: ReadingsTaken, chain: list[float], within: float, *, data_first: bool) -> None:
    factors = [f for f in reading.values["backprop_factor"] if f is not None]
    chain = chain[data_first:]  # the input of the first convolution is data without a gradient
    assert factors == pytest.approx([below / above for below, above in pairwise(chain)], rel=within)
    products = [math.prod(factors[n:]) for n in range(len(factors))]
    assert products == pytest.approx([below / chain[-1] for below in chain[:-1]], rel=within)


@dtypes
@pairs
def test_ledger_factors_and_products_equal_the_twins(
    name: str, clip: float | None, dtype: torch.dtype, keeper: FakeKeeper
) -> None:
    trained = Trained("mlp", name, clip, dtype, keeper)
    trained.run()
    ledgers = keeper.events(LedgerTaken)
    assert [ledger.step for ledger in ledgers] == [7, 14]
    for ledger in ledgers:
        chain = trained.expected[ledger.step].chain
        for n, entry in enumerate(ledger.entries):
            assert close(entry.factor, chain[n] / chain[n + 1], WITHIN[dtype])
            assert close(entry.autograd, chain[n] / chain[n + 1], WITHIN[dtype])
            assert close(entry.product, chain[n] / chain[-1], WITHIN[dtype])
            assert (entry.discrepancy or 0.0) < WITHIN[dtype]


def test_tied_weights_count_once_and_attention_is_measured_by_its_in_proj(keeper: FakeKeeper) -> None:
    net = PixelTransformer()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        loss = loss_of(net, digit_batches(1)[0])
        loss.backward()
        optimizer.step()
        grad = l2(array(net.embed.weight.grad))
        projected = [l2(array(b.attention.in_proj_weight.grad)) for b in net.blocks if isinstance(b, AttentionBlock)]
        run.step(loss)
        ((started,), (reading,)) = keeper.events(RunStarted), keeper.readings()
    names = [layer.name for layer in started.layers]
    assert names.index("blocks.0.attention.out_proj") == names.index("blocks.0.attention") + 1, "in forward order"
    assert names.count("embed") == 1
    assert "head" not in names
    assert (
        started.parameters == sum(layer.params for layer in started.layers) == sum(p.numel() for p in net.parameters())
    )
    norms = dict(zip(names, reading.values["grad_norm"], strict=True))
    assert close(norms["embed"], grad, 1e-5)
    for n, wanted in enumerate(projected):
        assert close(norms[f"blocks.{n}.attention"], wanted, 1e-5)


class Forks(nn.Module):
    """Two branches, of which each step uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 8)
        self.left = nn.Linear(8, 10)
        self.right = nn.Linear(8, 10)
        self.use_left = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.left if self.use_left else self.right)(torch.tanh(self.base(x)))
        return out


def test_frozen_and_unused_layers_are_reported_at_each_step(keeper: FakeKeeper) -> None:
    net = Forks()
    net.base.requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for step, batch in enumerate(digit_batches(4)):
            net.use_left = step % 2 == 0
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        readings = keeper.readings()
        ((started),) = keeper.events(RunStarted)
    names = [layer.name for layer in started.layers]
    for reading in readings:
        status = dict(zip(names, reading.statuses, strict=True))
        used, idle = ("left", "right") if reading.step % 2 == 0 else ("right", "left")
        assert status == {"base": "frozen", used: "used", idle: "unused"}
        for metric in ("grad_norm", "grad_rms", "update_norm", "update_ratio"):
            values = dict(zip(names, reading.values[metric], strict=True))
            assert values["base"] is None
            assert values[idle] is None, "unused is not zero"
            assert math.isfinite(values[used] or math.nan)


def test_built_in_net_has_all_readings(keeper: FakeKeeper) -> None:
    net = mlp(depth=3, activation="tanh", dtype=torch.float64)
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    seen: dict[int, Array] = {}
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=EVERY)) as run:
        for step, batch in enumerate(digit_batches(STEPS, dtype=torch.float64)):
            if step % EVERY == 0:
                with torch.no_grad():
                    seen[step] = array(net.blocks[0](net.stem(batch[0])))
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        readings = keeper.readings()
    assert [r.step for r in readings] == [0, 7, 14]
    for reading in readings[1:]:
        assert close(reading.values["activation_std"][1], float(seen[reading.step].std()), 1e-12)
