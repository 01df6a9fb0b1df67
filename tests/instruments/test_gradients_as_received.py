"""Readings are of the gradient that the optimizer receives: clipped, and without the factor of a GradScaler."""

from __future__ import annotations

import math

import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import WITHIN, SurfaceAgain, array, close, l2
from nets import digit_batches, loss_of, mlp

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import Measured
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch


@pytest.mark.parametrize("limit", [0.5, 3.0, 100.0])
def test_local_step_of_a_clipped_step_uses_the_slope_of_the_loss(limit: float, keeper: FakeKeeper) -> None:
    # L = (2w − 3)², w₀ = 1: g = 4(2w − 3) = −4; clipped the step is η·min(4, limit).
    net, lr = Surface(SurfaceModel()), 0.1
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    steering = Steering(net, optimizer, clip=limit)
    again, sampler = SurfaceAgain(net), Sampler(every=1)
    with Watch(net, optimizer, link=keeper.link, sampler=sampler, steering=steering, replay=again) as run:
        loss = net()
        loss.backward()
        optimizer.step()
        run.step(loss)
        (alpha,) = [e.value for e in keeper.events(Measured) if e.name == "local_step"]
        (reading,) = keeper.readings()
    step = lr * min(4.0, limit)
    assert alpha == pytest.approx(-(4 * (2 * (1 + step) - 3)) / -4, rel=1e-12)
    assert reading.grad_norm_preclip == pytest.approx(4.0, rel=1e-12)
    assert reading.global_grad_norm == pytest.approx(min(4.0, limit), rel=1e-12)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled by the loop"])
@pytest.mark.parametrize("fused", [False, True], ids=["default", "fused"])
def test_grad_scaler_does_not_change_norms(fused: bool, unscale: bool, clip: float | None, keeper: FakeKeeper) -> None:
    net, twin = mlp(), mlp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    steering = Steering(net, optimizer, clip=clip)
    wanted = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1), steering=steering) as run:
        for batch in digit_batches(4):
            twin.load_state_dict(net.state_dict())
            wanted.append([l2(array(g)) for g in torch.autograd.grad(loss_of(twin, batch), list(twin.parameters()))])
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
        readings = keeper.readings()
    assert len(readings) == 4
    for reading, sizes in zip(readings, wanted, strict=True):
        total = math.hypot(*sizes)
        factor = 1.0 if clip is None else min(1.0, clip / total)
        assert factor < 1 or clip is None
        assert close(reading.global_grad_norm, total * factor, WITHIN[torch.float32])
        assert (reading.grad_norm_preclip is None) == (clip is None)
        assert clip is None or close(reading.grad_norm_preclip, total, WITHIN[torch.float32])
        for found, size in zip(reading.values["grad_norm"], sizes[::2], strict=True):  # each layer's weight, bias after
            assert close(found, size * factor, WITHIN[torch.float32])
