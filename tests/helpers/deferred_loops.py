"""Simulates on a CPU that results arrive late, as on a GPU; loops whose losses are deferred or become non-finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, state_of
from torch import Tensor, nn

from tui_descent.instruments.deferred import HostCopy
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Resume, TurnKnob
from tui_descent.protocol.events import LedgerTaken, Measured, MetricLogged
from tui_descent.training.watch.watch import Watch


class SlowArrival(HostCopy):
    """Arrives only after `here` was asked `asks` times. Counts those not read yet, and those that were waited for."""

    asks = 3
    waited = 0
    open = 0
    most_open = 0

    def __init__(self, columns: Any) -> None:
        super().__init__(columns)
        self._left = type(self).asks
        self._was_read = False
        SlowArrival.open += 1
        SlowArrival.most_open = max(SlowArrival.most_open, SlowArrival.open)

    @property
    def ready(self) -> bool:
        self._left -= 1
        return self._left < 0

    def values(self) -> list[float]:
        SlowArrival.waited += self._left >= 0
        if not self._was_read:
            self._was_read = True
            SlowArrival.open -= 1
        return super().values()


class BatchReplay:
    """Replays a batch for the instruments that need it."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.batch = digit_batches(1)[0]

    def replay_forward(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def loss_of_part(self, where: slice) -> Tensor | None:
        return loss_of(self.net, (self.batch[0][where], self.batch[1][where]))

    def size(self) -> int:
        return len(self.batch[0])


def train(
    keeper: FakeKeeper | None,
    *,
    steps: int = 90,
    every: int = 7,
    plan: dict[int, TurnKnob] | None = None,
    micro: int = 1,
    check: bool = False,
) -> list[float]:
    """Train and return the losses. `plan` turns knobs before updates; `check` calls `run.loss` before `backward`."""
    torch.manual_seed(0)
    net = mlp(depth=3, activation="gelu", residual="on", norm="layer")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    again, losses = BatchReplay(net), []
    batches = digit_batches(20)
    run = Watch(
        net,
        optimizer,
        link=keeper.link if keeper else None,
        sampler=Sampler(every=every),
        replay=again,
        plan=[] if plan is None else plan.items(),
    )
    with run:
        for n in range(steps * micro):
            again.batch = batches[n % 20]
            loss = loss_of(net, again.batch)
            if check:
                run.loss(loss)
            (loss / micro).backward()
            if n % micro == micro - 1:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            run.step(loss)
            if n == 10:
                run.log("mine", loss.detach() * 2)
    return [float(loss) for loss in losses]


def recorded_run(folder: Path, **how: Any) -> tuple[list[Any], list[Any], list[Any], list[float]]:
    """Train; returns the step records without times, the readings, the events that belong to steps, and the losses."""
    folder.mkdir()
    keeper = FakeKeeper(folder)
    try:
        losses = train(keeper, **how)
        steps = [(s.segment, s.step, s.loss, s.lr, s.skipped) for s in keeper.steps()]
        readings = [
            (r.step, r.global_grad_norm, r.global_cosine, r.grad_norm_preclip, r.values) for r in keeper.readings()
        ]
        events = keeper.events()
    finally:
        keeper.close()
    kinds = (Measured, LedgerTaken, MetricLogged)
    return steps, readings, [e for e in events if isinstance(e, kinds)], losses


def fused(name: str, net: nn.Module) -> torch.optim.Optimizer:
    """A fused optimizer, whose update can be stopped on the device."""
    if name == "adam":
        return torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum, fused=True)


FUSED = ("sgd", "momentum", "adam", "adamw")


BAD_AT = 5


def train_into_fault(
    keeper: FakeKeeper | None,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    bad_at: int = BAD_AT,
    steps: int = 60,
    on_fault: Any = "hold",
    spoil: Any = math.nan,
    check: bool = False,
    each: Callable[[int, Watch], None] = lambda n, run: None,
) -> tuple[nn.Module, torch.optim.Optimizer, Watch, list[tuple[list[Tensor], list[Any]]]]:
    """Train; at `bad_at` make all gradients or the loss non-finite. Returns weights and state after every step too."""
    net = mlp()
    optimizer = optimizer_of(net)
    after = []
    batches = digit_batches(20)
    with Watch(
        net, optimizer, link=keeper.link if keeper else None, sampler=Sampler(every=0), on_fault=on_fault
    ) as run:
        for n in range(steps):
            each(n, run)
            loss = loss_of(net, batches[n % 20])
            if n == bad_at and spoil == "loss":
                loss = loss * math.inf
            if check:
                assert run.loss(loss), "the host does not know of it yet"
            optimizer.zero_grad()
            loss.backward()
            if n == bad_at and spoil != "loss":
                for p in net.parameters():
                    assert p.grad is not None
                    p.grad.fill_(spoil)
            optimizer.step()
            after.append((copy_of(net), state_of(optimizer)))
            assert run.step(loss), "the host does not know of it yet"
    return net, optimizer, run, after


def resume_when_held(keeper: FakeKeeper, *commands: Any) -> list[int]:
    """Once the run is held, send the commands and `Resume`. The list returned gets the steps written by then."""
    written: list[int] = []
    wait = keeper.link.wait

    def send_when_held(timeout_s: float | None) -> None:
        if timeout_s is None and not written:
            assert keeper.link.ring is not None
            written.append(keeper.link.ring._written)
            for command in (*commands, Resume()):
                keeper.send(command)
        wait(timeout_s)

    keeper.link.wait = send_when_held  # type: ignore[method-assign]
    return written
