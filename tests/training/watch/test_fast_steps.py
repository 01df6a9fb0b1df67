"""Fast steps only record: losses, rates, faults and commands are the same as with full steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Mark, Resume, RunSteps, TurnKnob, Undo
from tui_descent.protocol.events import KnobTurned, Marked, NotFinite
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch import watch as watch_module
from tui_descent.training.watch.watch import Watch

STEPS = 120


class CountingWatch(Watch):
    """Counts the fast steps; with `slow` there are none."""

    def __init__(self, *args: Any, slow: bool = False, **kwargs: Any) -> None:
        self.slow, self.fast = slow, 0
        super().__init__(*args, **kwargs)

    def _count_fast_steps(self) -> int:
        return 0 if self.slow else super()._count_fast_steps()

    def step(self, loss: Any) -> bool:
        before = self.progress.fast_steps
        self._was_full = False
        made = super().step(loss)
        self.fast += before > 0 and not self._was_full
        return made

    def _full_step(self, loss: Any, start_s: float) -> bool:
        self._was_full = True
        return super()._full_step(loss, start_s)


@contextmanager
def watched(keeper: FakeKeeper, **kwargs: Any) -> Iterator[tuple[CountingWatch, Any]]:
    net = mlp(depth=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with CountingWatch(net, optimizer, link=keeper.link, **kwargs) as run:
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


def recorded(keeper: FakeKeeper, *, slow: bool, **kwargs: Any) -> tuple[list[tuple[Any, ...]], list[int], int]:
    with watched(keeper, slow=slow, **kwargs) as (run, step):
        for n in range(STEPS):
            step(n)
        steps = [(s.step, s.loss, s.lr, s.segment, s.skipped) for s in keeper.steps()]
        return steps, [r.step for r in keeper.readings()], run.fast


@pytest.mark.parametrize("every", [0, 7, 50])
def test_fast_and_full_steps_record_the_same(every: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    plan = [(40, parse("lr=*0.5")), (41, parse("clip=0.1")), (60, parse("clip=off")), (80, parse("freeze@stem=on"))]
    found = []
    for slow in (True, False):
        keeper = FakeKeeper(tmp_path_factory.mktemp("run"))
        try:
            found.append(recorded(keeper, slow=slow, plan=plan, sampler=Sampler(every=every, at=(33, 34))))
        finally:
            keeper.close()
    (steps, readings, no_fast), (others, others_readings, fast) = found
    assert steps == others
    assert readings == others_readings == sorted({33, 34, *(range(0, STEPS, every) if every else ())})
    assert no_fast == 0
    assert fast > {0: STEPS / 2, 7: STEPS / 4, 50: STEPS / 2}[every]


def test_command_sent_during_fast_steps_acts_on_the_next_update(keeper: FakeKeeper) -> None:
    with watched(keeper, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.fast > 20 and run.progress.fast_steps > 5):
            step(n)
            n += 1
        keeper.send(TurnKnob(knob="lr", value="*2"))
        step(n)
        step(n + 1)
        (turned,) = keeper.events(KnobTurned)
        assert turned.step == n + 1
        assert [s.lr for s in keeper.steps()][n:] == [0.05, 0.1]


def test_commands_in_quick_succession_do_not_end_each_series_of_fast_steps(
    keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "COMMANDS_EVERY_S", 1000.0)
    with watched(keeper, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.fast > 20 and run.progress.fast_steps > 8):
            step(n)
            n += 1
        keeper.send(Mark())
        step(n)
        keeper.send(Mark())
        for later in range(n + 1, n + 6):
            step(later)
        assert [mark.step for mark in keeper.events(Marked)] == [n + 1]
        monkeypatch.setattr(watch_module, "COMMANDS_EVERY_S", 0.0)
        step(n + 6)
        assert [mark.step for mark in keeper.events(Marked)] == [n + 7]


def test_non_finite_gradient_is_found_during_fast_steps(keeper: FakeKeeper) -> None:
    def spoil(net: torch.nn.Module) -> None:
        for p in net.parameters():
            assert p.grad is not None
            p.grad.fill_(math.nan)

    with watched(keeper, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.fast > 20 and run.progress.fast_steps > 5):
            step(n)
            n += 1
        step(n, spoil)
        (found,) = keeper.events(NotFinite)
        assert (found.step, found.what) == (n, "gradient")


def test_non_finite_loss_is_found_during_fast_steps(keeper: FakeKeeper) -> None:
    with watched(keeper, sampler=Sampler(every=0)) as (run, step):
        n = 0
        while not (run.fast > 20 and run.progress.fast_steps > 5):
            step(n)
            n += 1
        run.optimizer.zero_grad()
        run.optimizer.step()  # without gradients: nothing is spoilt
        run.step(math.nan)
        (found,) = keeper.events(NotFinite)
        assert (found.step, found.what) == (n, "loss")
        assert [s.step for s in keeper.steps()] == list(range(n + 1))


def test_rate_held_in_a_tensor_is_recorded_as_the_update_used_it(keeper: FakeKeeper) -> None:
    net = mlp(depth=1)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    batch = digit_batches(1)[0]
    with CountingWatch(net, optimizer, link=keeper.link, sampler=Sampler(every=0)) as run:
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            optimizer.step()
            rate.mul_(0.5)  # as a scheduler does, before `run.step`
            run.step(loss)
        assert run.fast > 20
    assert [s.lr for s in keeper.steps()] == [0.5 * 0.5**n for n in range(60)]


@pytest.mark.parametrize("held", ["by a loss", "by the loop", "at the end"])
def test_change_made_during_a_hold_acts_on_the_next_update(held: str, keeper: FakeKeeper) -> None:
    with watched(keeper, sampler=Sampler(every=0), on_fault="hold", is_scenario=True) as (run, step):
        n = 0
        while not (run.fast > 20 and run.progress.fast_steps > 5):
            step(n)
            n += 1
        keeper.send(TurnKnob(knob="lr", value="*2"))
        keeper.send(RunSteps(steps=1))
        if held == "by a loss":
            assert not run.loss(torch.tensor(math.nan))
        elif held == "by the loop":
            run.control.hold("the step raised")
        else:
            assert run.control.wait_at_end(100) == 1
        keeper.send(Resume())  # acts after that one step
        step(n)
        step(n + 1)
        (turned,) = keeper.events(KnobTurned)
        assert turned.step == n
        assert [s.lr for s in keeper.steps()][n - 1 :] == [0.05, 0.1, 0.1]
        assert not keeper.ring.flagged()


def test_undo_during_fast_steps_to_a_measured_step_measures_it_again(keeper: FakeKeeper) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    plan = [(30, parse("lr=*0.5"))]
    with watched(keeper, sampler=Sampler(every=10), is_scenario=True, plan=plan) as (run, step):
        for n in range(36):
            step(n)
        assert run.progress.fast_steps
        keeper.send(Undo())
        step(36)
        assert (run.progress.segment, run.next_step) == (1, 30)
        step(37)
        assert [(r.segment, r.step) for r in keeper.readings()] == [(0, 0), (0, 10), (0, 20), (0, 30), (1, 30)]


def test_loss_checked_at_some_steps_in_a_reused_tensor_is_read_at_every_step(keeper: FakeKeeper) -> None:
    net, held, losses = mlp(depth=2), torch.zeros(()), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with CountingWatch(net, optimizer, link=keeper.link, sampler=Sampler(every=0, at=(20,))) as run:
        for n, batch in enumerate(digit_batches(30)):
            loss = loss_of(net, batch)
            held.copy_(loss.detach())
            losses.append(held.item())
            if n < 19:
                run.loss(held)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(held)
        assert [s.loss for s in keeper.steps()] == losses
        assert run.fast


class OptionalFirstLayer(nn.Module):
    """Two layers, of which the first can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.whole = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) → (B, 4)."""
        out: Tensor = self.last(self.first(x).tanh() if self.whole else x)
        return out


@pytest.mark.parametrize("how", ["left out every other time", "frozen at first"])
def test_input_most_gradient_is_checked_again_after_it_was_missing(how: str, keeper: FakeKeeper) -> None:
    net, bad_at = OptionalFirstLayer(), 50
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with CountingWatch(net, optimizer, link=keeper.link, sampler=Sampler(every=0)) as run:
        for n in range(bad_at + 1):
            net.whole = how == "frozen at first" or n % 2 == 0
            net.first.requires_grad_(how != "frozen at first" or n >= 30)
            loss = net(torch.ones(2, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if n == bad_at:
                assert net.first.weight.grad is not None
                net.first.weight.grad[0, 0] = math.nan
            optimizer.step()
            run.step(loss)
        (found,) = keeper.events(NotFinite)
        assert (found.step, found.layer) == (bad_at, "first")
        assert run.fast > 20
