"""The learning-rate multiplier: schedulers neither see it nor remove it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import FailingSGD, copy_of, digit_batches, loss_of, mlp, same
from torch.optim import lr_scheduler

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import CommandRejected
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch.watch import Watch

STEPS = 30
TURN_AT, TURN = 10, "lr=*3"
Schedule = Callable[[torch.optim.Optimizer], Any]


class InverseRoot(lr_scheduler.LRScheduler):
    """A user's scheduler, a subclass of torch's."""

    def get_lr(self) -> list[float]:
        return [base / math.sqrt(1 + self.last_epoch) for base in self.base_lrs]


class ScaledSchedule:
    """A user's scheduler, not torch's, that computes the next rate from the current one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = max(1e-4, group["lr"] * 0.93)


class AbsoluteSchedule(ScaledSchedule):
    """A user's scheduler that sets an absolute rate, at every third step only."""

    count = 0

    def step(self) -> None:
        self.count += 1
        if self.count % 3 == 0:
            for n, group in enumerate(self.optimizer.param_groups):
                group["lr"] = (0.01, 0.05)[n] / self.count


SCHEDULES: dict[str, Schedule] = {
    "none": lambda o: None,
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 1),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.95),
    "OneCycleLR, momentum too": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=[0.1, 0.2], total_steps=STEPS + 1, cycle_momentum=True, three_phase=True
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)], milestones=[12]
    ),
    "a user's subclass of LRScheduler": InverseRoot,
    "a user's scheduler that scales the rate": ScaledSchedule,
    "a user's scheduler that sets the rate": AbsoluteSchedule,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=3, factor=0.5),
}


def train(
    schedule: Schedule, plan: Iterable[tuple[int, TurnKnob]] = (), link: Any = None, *, scheduler_last: bool = False
) -> tuple[list[list[float]], list[list[float]]]:
    """The rates used by each update, and the scheduler's own after it, for two groups with different rates.

    The scheduler is stepped before `run.step`, or after it with `scheduler_last`.
    """
    net = mlp()
    optimizer = torch.optim.SGD(
        [{"params": net.stem.parameters(), "lr": 0.01}, {"params": [*net.blocks.parameters(), *net.head.parameters()]}],
        lr=0.05,
        momentum=0.5,
    )
    scheduler = schedule(optimizer)
    used: list[list[float]] = []
    own: list[list[float]] = []
    with Watch(net, optimizer, link=link, plan=plan) as run:
        # Registered after the watch's own hook, so that it sees what the update sees.
        optimizer.register_step_pre_hook(lambda o, *_: used.append([g["lr"] for g in o.param_groups]))
        for n, batch in enumerate(digit_batches(STEPS)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler_last:
                run.step(loss)
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(1.0 + n)  # the loss never improves
            elif scheduler is not None:
                scheduler.step()
            if not scheduler_last:
                run.step(loss)
            own.append([g["lr"] for g in optimizer.param_groups])
    return used, own


@pytest.mark.parametrize("scheduler_last", [False, True], ids=["before run.step", "after run.step"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_the_schedulers_rate_times_the_multiplier(
    name: str, scheduler_last: bool, keeper: FakeKeeper
) -> None:
    plain, plain_own = train(SCHEDULES[name], scheduler_last=scheduler_last)
    turned, own = train(SCHEDULES[name], plan=[(TURN_AT, parse(TURN))], link=keeper.link, scheduler_last=scheduler_last)
    assert own == plain_own, "the schedule sees only its own values"
    assert turned[:TURN_AT] == plain[:TURN_AT]
    for found, base in zip(turned[TURN_AT:], plain[TURN_AT:], strict=True):
        assert found == pytest.approx([3 * rate for rate in base], rel=1e-12)
    assert [record.lr for record in keeper.steps()] == pytest.approx([rates[0] for rates in turned], rel=1e-12)


def test_an_absolute_rate_is_exact_and_multipliers_combine() -> None:
    plan = [(3, parse("lr=0.2")), (6, parse("lr=*2")), (9, parse("lr=/4")), (9, parse("lr=*1.25"))]
    used, own = train(SCHEDULES["none"], plan)
    first = [rates[0] for rates in used]
    assert first[:3] == [0.01] * 3
    assert first[3:6] == pytest.approx([0.2] * 3)
    assert first[6:9] == pytest.approx([0.4] * 3)
    assert first[9:] == pytest.approx([0.125] * (STEPS - 9))
    assert [rates[1] / rates[0] for rates in used] == pytest.approx([5.0] * STEPS), "the groups keep their ratio"
    assert own == [[0.01, 0.05]] * STEPS


def test_the_update_uses_the_multiplied_rate() -> None:
    net, twin = mlp(), mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    plain = torch.optim.Adam(twin.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=None, plan=[(2, parse("lr=0.01"))]) as run:
        for n, batch in enumerate(digit_batches(5)):
            for which, o in ((net, optimizer), (twin, plain)):
                if which is twin and n == 2:
                    plain.param_groups[0]["lr"] = 1e-3 * (0.01 / 1e-3)
                loss = loss_of(which, batch)
                o.zero_grad()
                loss.backward()
                o.step()
            run.step(loss)
    assert same(copy_of(net), copy_of(twin))


def test_the_groups_hold_the_users_rate_between_steps_and_after_the_run() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=None, plan=[(0, parse("lr=*7"))]) as run:
        run.control.before_update()
        loss = loss_of(net, digit_batches(1)[0])
        loss.backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.1
        run.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("reported", [False, True], ids=["at the next update", "at run.step"])
def test_a_step_that_raises_does_not_leave_the_multiplied_rate(reported: bool) -> None:
    net = mlp()
    optimizer = FailingSGD(net.parameters(), lr=0.1)
    used: list[float] = []
    with Watch(net, optimizer, link=None, plan=[(1, parse("lr=*3"))]) as run:
        optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.fails = n in (2, 3)
            try:
                optimizer.step()
            except RuntimeError:
                if not reported:
                    continue
            run.step(loss)
            assert optimizer.param_groups[0]["lr"] == 0.1
    assert {round(rate, 12) for rate in used} == {0.1, 0.3}, "never 0.9"
    assert run.next_step == 4, "the update after a step that raised counts"


def test_a_last_step_that_raises_does_not_leave_the_multiplied_rate() -> None:
    net = mlp()
    optimizer = FailingSGD(net.parameters(), lr=0.1)

    def loop() -> None:
        with Watch(net, optimizer, link=None, plan=[(0, parse("lr=*3"))]) as run:
            run.control.before_update()
            loss_of(net, digit_batches(1)[0]).backward()
            optimizer.fails = True
            optimizer.step()

    with pytest.raises(RuntimeError, match="no memory"):
        loop()
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("turn", ["lr=0.1", "lr=*2"])
def test_a_rate_of_zero_cannot_be_multiplied(turn: str, keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Watch(net, optimizer, link=keeper.link, plan=[(1, parse(turn))]) as run:
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    (rejected,) = keeper.events(CommandRejected)
    assert "set the learning rate to 0" in rejected.reason or "lr would become 0; allowed" in rejected.reason
    assert {record.lr for record in keeper.steps()} == {0.0}


def test_a_rate_out_of_range_changes_nothing(keeper: FakeKeeper) -> None:
    used, _ = train(SCHEDULES["none"], plan=[(3, parse("lr=*1e6")), (5, parse("lr=*1e6"))], link=keeper.link)
    (rejected,) = keeper.events(CommandRejected)
    assert rejected.reason.startswith("lr would become 1e+10; allowed: a number > 0 and ≤ 1e+06")
    assert math.isclose(used[-1][0], 1e4)


def test_a_tensor_learning_rate_is_multiplied() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.1))
    used: list[float] = []
    with Watch(net, optimizer, link=None, plan=[(1, parse("lr=*3"))]) as run:
        optimizer.register_step_pre_hook(lambda o, *_: used.append(float(o.param_groups[0]["lr"])))
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    assert used == pytest.approx([0.1, 0.3, 0.3])
