"""Numbers that come late, on a CPU; loops whose losses are told late, and gradients spoilt in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, state_of
from torch import Tensor, nn

from tui_descent.instruments.deferred import Arrival
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Resume, TurnKnob
from tui_descent.protocol.events import LedgerTaken, Measured, MetricLogged
from tui_descent.training.watch.watch import Watch


class Slow(Arrival):
    """Arrived only when it has been asked so many times."""

    asks = 3
    waited = 0
    open = 0
    most_open = 0

    def __init__(self, columns: Any) -> None:
        super().__init__(columns)
        self._left = type(self).asks
        self._told = False
        Slow.open += 1
        Slow.most_open = max(Slow.most_open, Slow.open)

    @property
    def here(self) -> bool:
        self._left -= 1
        return self._left < 0

    def values(self) -> list[float]:
        Slow.waited += self._left >= 0
        if not self._told:
            self._told = True
            Slow.open -= 1
        return super().values()


class Again:
    """The batch once more."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.batch = digit_batches(1)[0]

    def forward_again(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def loss_of_part(self, where: slice) -> Tensor | None:
        return loss_of(self.net, (self.batch[0][where], self.batch[1][where]))

    def size(self) -> int:
        return len(self.batch[0])


def train(
    kept: FakeKeeper | None,
    *,
    steps: int = 90,
    every: int = 7,
    plan: dict[int, TurnKnob] | None = None,
    micro: int = 1,
    around: Any = None,
    hand: bool = False,
) -> list[float]:
    """Its losses. `plan` turns knobs before updates; `around` is entered for everything but the loop's own work."""
    torch.manual_seed(0)
    net = mlp(depth=3, activation="gelu", residual="on", norm="layer")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    again, losses = Again(net), []
    batches = digit_batches(20)
    run = Watch(
        net,
        optimizer,
        link=kept.link if kept else None,
        sampler=Sampler(every=every),
        again=again,
        plan=[] if plan is None else plan.items(),
    )
    with run:
        for n in range(steps * micro):
            again.batch = batches[n % 20]
            loss = loss_of(net, again.batch)
            if hand:
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


def told(folder: Path, **how: Any) -> tuple[list[Any], list[Any], list[Any], list[float]]:
    """Records without their times, readings, and the events that belong to steps."""
    folder.mkdir()
    kept = FakeKeeper(folder)
    try:
        losses = train(kept, **how)
        steps = [(s.segment, s.step, s.loss, s.lr, s.skipped) for s in kept.steps()]
        readings = [
            (r.step, r.global_grad_norm, r.global_cosine, r.grad_norm_preclip, r.values) for r in kept.readings()
        ]
        events = kept.events()
    finally:
        kept.close()
    kinds = (Measured, LedgerTaken, MetricLogged)
    return steps, readings, [e for e in events if isinstance(e, kinds)], losses


def fused(name: str, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizers whose update can be stopped on the device."""
    if name == "adam":
        return torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum, fused=True)


FUSED = ("sgd", "momentum", "adam", "adamw")


BAD_AT = 5


def steer_into(
    kept: FakeKeeper | None,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    bad_at: int = BAD_AT,
    steps: int = 60,
    on_fault: Any = "hold",
    spoil: Any = math.nan,
    hand: bool = False,
    each: Callable[[int, Watch], None] = lambda n, run: None,
) -> tuple[nn.Module, torch.optim.Optimizer, Watch, list[tuple[list[Tensor], list[Any]]]]:
    """At `bad_at` all gradients are spoilt, or the loss itself; weights and state after every step."""
    net = mlp()
    optimizer = optimizer_of(net)
    after = []
    batches = digit_batches(20)
    with Watch(net, optimizer, link=kept.link if kept else None, sampler=Sampler(every=0), on_fault=on_fault) as run:
        for n in range(steps):
            each(n, run)
            loss = loss_of(net, batches[n % 20])
            if n == bad_at and spoil == "loss":
                loss = loss * math.inf
            if hand:
                assert run.loss(loss), "nothing is known yet"
            optimizer.zero_grad()
            loss.backward()
            if n == bad_at and spoil != "loss":
                for p in net.parameters():
                    assert p.grad is not None
                    p.grad.fill_(spoil)
            optimizer.step()
            after.append((copy_of(net), state_of(optimizer)))
            assert run.step(loss), "as far as anybody knows yet"
    return net, optimizer, run, after


def resumes(kept: FakeKeeper, *commands: Any) -> list[int]:
    """What is ordered once the run stands; the numbers of steps that had been written by then."""
    stood: list[int] = []
    wait = kept.link.wait

    def still(timeout_s: float | None) -> None:
        if timeout_s is None and not stood:
            assert kept.link.ring is not None
            stood.append(kept.link.ring._written)
            for command in (*commands, Resume()):
                kept.order(command)
        wait(timeout_s)

    kept.link.wait = still  # type: ignore[method-assign]
    return stood
