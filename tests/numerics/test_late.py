"""What a GPU tells only later, on a CPU: told late it is told the same, in its place; nothing waits for a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from kept import Kept
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tui_descent.instruments import deferred
from tui_descent.instruments.deferred import Arrival
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Resume, TurnKnob, Undo
from tui_descent.protocol.events import CommandDone, KnobTurned, LedgerTaken, Measured, MetricLogged, NotFinite
from tui_descent.training import late, verdict
from tui_descent.training.past import Past
from tui_descent.training.steering import Steering
from tui_descent.training.watch import Watch


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


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's numbers are not to be looked at at once: sums are wide, as on a GPU."""
    monkeypatch.setattr(deferred, "FAR", {"cuda", "cpu"})


@pytest.fixture(params=[0, 3, 40], ids=["at once", "after 3 looks", "after 40"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    monkeypatch.setattr(Slow, "asks", request.param)
    monkeypatch.setattr(late, "Arrival", Slow)
    Slow.waited = Slow.open = Slow.most_open = 0
    return Slow


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether losses are read at once; a GPU's instruments in either case."""
    return lambda yes: monkeypatch.setattr(late, "comes_late", lambda device: not yes)


class Again:
    """The batch once more."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.batch = digit_batches(1)[0]

    def forward_again(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def part(self, where: slice) -> Tensor | None:
        return loss_of(self.net, (self.batch[0][where], self.batch[1][where]))

    def size(self) -> int:
        return len(self.batch[0])


def train(
    kept: Kept | None,
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
    kept = Kept(folder)
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


@pytest.mark.parametrize("hand", [False, True], ids=["", "loss handed over"])
@pytest.mark.parametrize("micro", [1, 3])
def test_told_late_it_is_told_the_same_and_nothing_is_lost(
    micro: int, hand: bool, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"micro": micro, "hand": hand, "steps": 150 // micro}
    at_hand(True)
    now = told(tmp_path / "now", **how)
    at_hand(False)
    later = told(tmp_path / "later", **how)
    assert len(now[0]) == 150 // micro
    assert [step[1] for step in later[0]] == list(range(150 // micro))
    for a, b in zip(now, later, strict=True):
        assert repr(a) == repr(b)
    if micro == 1:
        assert [step[2] for step in later[0]] == later[3]
    assert slow.open == 0, "whatever was set off has been read"


def test_losses_are_those_of_a_loop_that_nobody_watches(far: None, slow: type[Slow], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = mlp(depth=3, activation="gelu", residual="on", norm="layer")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    plain = []
    batches = digit_batches(20)
    for n in range(60):
        loss = loss_of(net, batches[n % 20])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain.append(loss.item())
    assert told(tmp_path / "late", steps=60)[3] == plain
