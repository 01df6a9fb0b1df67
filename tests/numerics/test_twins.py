"""Every reading of a conv net and a transformer against straight autograd and NumPy in float64, at the very steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from kept import Kept
from nets import OPTIMIZERS, Attends, ConvNet, Words, digit_batches, loss_of, mlp
from test_norms import WITHIN, Array, array, check_row, close, l2
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import ReadingsTaken, RunStarted
from tui_descent.training.watch import Watch

NETS: dict[str, Any] = {"conv": ConvNet, "transformer": Words}
EVERY = 7
STEPS = 16


def own_weight(module: nn.Module) -> nn.Parameter:
    """Of a module's own parameters the greatest matrix, else vector."""
    return max(module.parameters(recurse=False), key=lambda p: (min(p.dim(), 2), p.numel()))


def units_of(net: nn.Module) -> list[nn.Module]:
    if isinstance(net, Words):
        return list(net.blocks)
    return [m for m in net.body if list(m.parameters())]  # type: ignore[union-attr]


def boundary_norms(net: nn.Module, batch: tuple[Tensor, Tensor]) -> list[float]:
    """The net once more, by straight autograd: ‖dL/dh‖ at the input of every unit and after the last."""
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
    """(module, input, output) of every activation, as the net is now."""
    seen: list[tuple[nn.Module, Array, Array]] = []
    kept: dict[nn.Module, Array] = {}
    kinds = (nn.ReLU, nn.Tanh, nn.GELU)
    bends = [m for m in net.modules() if isinstance(m, kinds)]
    handles = [m.register_forward_pre_hook(lambda m, a: kept.update({m: array(a[0]).copy()})) for m in bends]
    handles += [m.register_forward_hook(lambda m, _, out: seen.append((m, kept[m], array(out).copy()))) for m in bends]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "clip"), [("sgd", None), ("adam", None), ("adamw", 0.3)])
@pytest.mark.parametrize("kind", NETS)
def test_all_readings_equal_their_twins_at_the_very_steps(
    kind: str, name: str, clip: float | None, dtype: torch.dtype, kept: Kept
) -> None:
    net = NETS[kind]().to(dtype)
    if kind == "conv":
        with torch.no_grad():
            net.body[0].bias[1] = -50.0  # a dead channel
            net.body[2].weight.mul_(8)  # some of tanh's outputs at its ends
    optimizer = OPTIMIZERS[name](net.parameters())
    twin = NETS[kind]().to(dtype)  # of its own, since what is watched listens to every pass
    named = {name: own_weight(m) for name, m in net.named_modules() if list(m.parameters(recurse=False))}
    within = WITHIN[dtype]
    twins: dict[int, Any] = {}
    previous: list[Array] = []
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=EVERY)) as run:
        for step, batch in enumerate(digit_batches(STEPS, size=64, dtype=dtype)):
            if due := step % EVERY == 0:
                twin.load_state_dict(net.state_dict())
                chain, seen = boundary_norms(twin, batch), activations(twin, batch)
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            grads = [array(p.grad).copy() for p in net.parameters()]
            own = {name: array(w.grad).copy() for name, w in named.items()}
            before = {name: array(w).copy() for name, w in named.items()}
            optimizer.step()
            if due:
                twins[step] = (
                    grads,
                    previous,
                    own,
                    before,
                    {name: array(w).copy() for name, w in named.items()},
                    chain,
                    seen,
                )
            previous = grads
            run.step(loss)
        readings, (started,) = kept.readings(), kept.events(RunStarted)
    names = [layer.name for layer in started.layers]
    assert sorted(names) == sorted(set(named) - {"head"}) if kind == "transformer" else names == list(named)
    assert [reading.step for reading in readings] == sorted(twins) == [0, 7, 14]
    for reading in readings:
        grads, previous, own, before, after, chain, seen = twins[reading.step]
        assert close(reading.global_grad_norm, l2(np.concatenate([g.ravel() for g in grads])), within)
        for n, layer in enumerate(names):
            # Of a small move of float32 weights Δ keeps fewer digits, but both sides take it from the same numbers.
            check_row(reading, n, own[layer], before[layer], after[layer], within)
        if reading.step == 0:
            continue  # a foreign net's layers are known only after its first pass: no signals yet
        new, old = (np.concatenate([g.ravel() for g in side]) for side in (grads, previous))
        assert reading.global_cosine == pytest.approx(float(new @ old) / l2(new) / l2(old), abs=within)
        factors = [f for f in reading.values["backprop_factor"] if f is not None]
        wanted = [below / above for below, above in pairwise(chain)]
        # The input of the first convolution is data, which gets no gradient in the run itself.
        assert len(factors) == len(wanted) - (kind == "conv")
        assert factors == pytest.approx(wanted[-len(factors) :], rel=within)
        check_activations(reading, seen, within)


def test_tied_weights_are_counted_once_and_attention_by_its_in_proj(kept: Kept) -> None:
    net = Words()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=1)) as run:
        loss = loss_of(net, digit_batches(1)[0])
        loss.backward()
        optimizer.step()
        grad = l2(array(net.embed.weight.grad))
        projected = [l2(array(b.attention.in_proj_weight.grad)) for b in net.blocks if isinstance(b, Attends)]
        run.step(loss)
        ((started,), (reading,)) = kept.events(RunStarted), kept.readings()
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
    """Two ways, of which a step takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 8)
        self.left = nn.Linear(8, 10)
        self.right = nn.Linear(8, 10)
        self.leftwards = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.left if self.leftwards else self.right)(torch.tanh(self.base(x)))
        return out


def test_frozen_and_unused_layers_are_told_as_such_step_by_step(kept: Kept) -> None:
    net = Forks()
    net.base.requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=1)) as run:
        for step, batch in enumerate(digit_batches(4)):
            net.leftwards = step % 2 == 0
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        readings = kept.readings()
        ((started),) = kept.events(RunStarted)
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


def test_a_net_of_our_own_reads_every_tier_from_its_first_due_step(kept: Kept) -> None:
    net = mlp(depth=3, activation="tanh", dtype=torch.float64)
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    seen: dict[int, Array] = {}
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=EVERY)) as run:
        for step, batch in enumerate(digit_batches(STEPS, dtype=torch.float64)):
            if step % EVERY == 0:
                with torch.no_grad():
                    seen[step] = array(net.blocks[0](net.stem(batch[0])))
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        readings = kept.readings()
    assert [r.step for r in readings] == [0, 7, 14]
    for reading in readings[1:]:
        assert close(reading.values["activation_std"][1], float(seen[reading.step].std()), 1e-12)
