"""Steps of which nothing is asked go a short way: what is recorded, held and obeyed is what the long way gives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kept import Kept
from nets import digit_batches, loss_of, mlp

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import KnobTurned, NotFinite
from tui_descent.scenario.knobs import parse
from tui_descent.training.lane import Lane
from tui_descent.training.telling import Telling
from tui_descent.training.watch import Watch

STEPS = 120


class Counting(Lane):
    """Counts the steps that went the short way; `long` sends all of them the long one."""

    __slots__ = ("long", "short")

    def enter(self, steps: int) -> None:
        super().enter(0 if self.long else steps)

    def step(self, loss: Any) -> bool:
        went = super().step(loss)
        self.short += went
        return went


class Counted(Watch):
    """A watch whose lane counts."""

    def __init__(self, *args: Any, long: bool = False, **kwargs: Any) -> None:
        self.long = long
        super().__init__(*args, **kwargs)

    def _ways(self) -> tuple[Telling, Lane]:
        telling, _ = super()._ways()
        lane = Counting(self.control, self._guard, self.optimizer, over=self._lane_over)
        lane.short, lane.long = 0, self.long
        return telling, lane

    @property
    def short(self) -> int:
        return self._lane.short  # type: ignore[attr-defined,no-any-return]


@contextmanager
def watched(kept: Kept, **kwargs: Any) -> Iterator[tuple[Counted, Any]]:
    net = mlp(depth=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with Counted(net, optimizer, link=kept.link, **kwargs) as run:
        batches = digit_batches(20) * (STEPS // 20)

        def step(n: int, spoil: Any = None) -> None:
            loss = loss_of(net, batches[n])
            optimizer.zero_grad()
            loss.backward()
            if spoil is not None:
                spoil(net)
            optimizer.step()
            run.step(loss)

        yield run, step


def recorded(kept: Kept, *, long: bool, **kwargs: Any) -> tuple[list[tuple[Any, ...]], list[int], int]:
    with watched(kept, long=long, **kwargs) as (run, step):
        for n in range(STEPS):
            step(n)
        steps = [(s.step, s.loss, s.lr, s.segment, s.skipped) for s in kept.steps()]
        return steps, [r.step for r in kept.readings()], run.short


@pytest.mark.parametrize("every", [0, 7, 50])
def test_both_ways_record_the_same(every: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = [(40, parse("lr=*0.5")), (41, parse("clip=0.1")), (60, parse("clip=off")), (80, parse("freeze@stem=on"))]
    found = []
    for long in (True, False):
        kept = Kept(tmp_path_factory.mktemp("run"))
        try:
            found.append(recorded(kept, long=long, plan=plan, sampler=Sampler(every=every, at=(33, 34))))
        finally:
            kept.close()
    (steps, readings, none), (others, others_readings, short) = found
    assert steps == others
    assert readings == others_readings == sorted({33, 34, *(range(0, STEPS, every) if every else ())})
    assert none == 0
    assert short > {0: STEPS / 2, 7: STEPS / 4, 50: STEPS / 2}[every]


def test_a_turn_asked_for_in_a_stretch_acts_on_the_very_next_update(kept: Kept) -> None:
    with watched(kept, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.short > 20 and run._lane.left > 5):
            step(n)
            n += 1
        kept.order(TurnKnob(knob="lr", value="*2"))
        step(n)
        step(n + 1)
        (turned,) = kept.events(KnobTurned)
        assert turned.step == n + 1
        assert [s.lr for s in kept.steps()][n:] == [0.05, 0.1]


def test_a_gradient_that_is_no_number_is_found_in_a_stretch(kept: Kept) -> None:
    def spoil(net: torch.nn.Module) -> None:
        for p in net.parameters():
            assert p.grad is not None
            p.grad.fill_(math.nan)

    with watched(kept, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.short > 20 and run._lane.left > 5):
            step(n)
            n += 1
        step(n, spoil)
        (found,) = kept.events(NotFinite)
        assert (found.step, found.what) == (n, "gradient")


def test_a_loss_that_is_no_number_is_found_in_a_stretch(kept: Kept) -> None:
    with watched(kept, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.short > 20 and run._lane.left > 5):
            step(n)
            n += 1
        run.optimizer.zero_grad()
        run.optimizer.step()  # without gradients: nothing is spoilt
        run.step(math.nan)
        (found,) = kept.events(NotFinite)
        assert (found.step, found.what) == (n, "loss")
        assert [s.step for s in kept.steps()] == list(range(n + 1))


def test_a_rate_that_is_a_tensor_is_the_one_of_the_update(kept: Kept) -> None:
    net = mlp(depth=1)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    batch = digit_batches(1)[0]
    with Counted(net, optimizer, link=kept.link, sampler=Sampler(every=0)) as run:
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            optimizer.step()
            rate.mul_(0.5)  # as a scheduler does, before the step is told
            run.step(loss)
        assert run.short > 20
    assert [s.lr for s in kept.steps()] == [0.5 * 0.5**n for n in range(60)]
