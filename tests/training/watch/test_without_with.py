"""A run that is not entered by `with`, or that a framework enters and never leaves, ends with the process."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Stop
from tui_descent.protocol.events import RunEnded, RunStarted, StateChanged
from tui_descent.training.stop_run import StopRun
from tui_descent.training.watch.watch import Watch


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Runs what would run when the interpreter exits."""
    waiting: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def unregister(function: Callable[..., None]) -> None:
        waiting[:] = [entry for entry in waiting if entry[0] != function]

    monkeypatch.setattr(atexit, "register", lambda function, *args: waiting.append((function, args)))
    monkeypatch.setattr(atexit, "unregister", unregister)

    def leave() -> None:
        for function, args in list(waiting):
            function(*args)

    return leave


def train(net: nn.Module, run: Watch | None, steps: int) -> list[float]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3) if run is None else run.optimizer
    losses = []
    for batch in digit_batches(steps):
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.step(loss)
        losses.append(loss.item())
    return losses


def new(keeper: FakeKeeper | None, **how: object) -> tuple[nn.Module, Watch]:
    torch.manual_seed(3)
    net = mlp()
    link = None if keeper is None else keeper.link
    return net, Watch(net, torch.optim.Adam(net.parameters(), lr=1e-3), link=link, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_without_with_every_step_is_recorded_and_the_run_ends_at_exit(
    steps: int, keeper: FakeKeeper, at_exit: Callable[[], None]
) -> None:
    torch.manual_seed(3)
    plain = mlp()
    plain_losses = train(plain, None, steps)
    net, run = new(keeper, sampler=Sampler(every=3))
    losses = train(net, run, steps)
    assert losses == plain_losses
    assert same(copy_of(net), copy_of(plain))
    at_exit()
    records = keeper.steps()
    assert [(r.step, r.loss, r.lr, r.skipped) for r in records] == [(n, losses[n], 1e-3, False) for n in range(steps)]
    assert [reading.step for reading in keeper.readings()] == list(range(3, steps, 3))
    events = keeper.events()
    assert isinstance(events[0], RunStarted)
    assert (events[-1].status, events[-1].step, events[-1].reason) == ("finished", steps, "")
    at_exit()
    assert keeper.events() == []
    assert not run.optimizer._optimizer_step_pre_hooks


def test_with_after_the_first_step_goes_on_with_the_same_run(keeper: FakeKeeper, at_exit: Callable[[], None]) -> None:
    net, run = new(keeper)
    train(net, run, 3)
    with run as entered:
        assert entered is run
        train(net, run, 3)
    at_exit()
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step) == ("finished", 6)


def test_a_run_that_is_never_used_leaves_nothing(keeper: FakeKeeper, at_exit: Callable[[], None]) -> None:
    net, _ = new(keeper)
    at_exit()
    assert keeper.events() == []
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("boom"), "failed", "ValueError: boom"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (None, "finished", ""),
    ],
)
def test_the_exception_that_ended_the_script_is_the_reason(
    error: BaseException | None,
    status: str,
    reason: str,
    keeper: FakeKeeper,
    at_exit: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, run = new(keeper)
    train(net, run, 3)
    if error is not None:
        monkeypatch.setattr(sys, "last_value", error, raising=False)  # as the interpreter does
    at_exit()
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step, ended.reason) == (status, 3, reason)


@pytest.mark.parametrize("entered", [True, False], ids=["entered in a callback", "never entered"])
def test_a_stop_caught_by_a_framework_is_obeyed_at_once_and_reported_at_exit(
    entered: bool, keeper: FakeKeeper, at_exit: Callable[[], None]
) -> None:
    net, run = new(keeper)
    if entered:
        run.__enter__()
    train(net, run, 3)
    keeper.send(Stop())
    with pytest.raises(StopRun):
        train(net, run, 1000)
    events = keeper.events()
    assert [event for event in events if isinstance(event, StateChanged)][-1].state == "stopping"
    assert not any(isinstance(event, RunEnded) for event in events), "the framework may call __exit__ later"
    at_exit()
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.reason) == ("stopped", "stop requested")


def test_a_loop_that_swallows_the_stop_is_told_again(keeper: FakeKeeper, at_exit: Callable[[], None]) -> None:
    net, run = new(keeper)
    train(net, run, 3)
    keeper.send(Stop())
    stops = 0
    for _ in range(1000):
        try:
            train(net, run, 1)
        except StopRun:
            stops += 1
            if stops == 3:
                break
    assert stops == 3
    at_exit()


def test_a_forked_child_does_not_end_the_run_of_its_parent(
    keeper: FakeKeeper, at_exit: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, run = new(keeper)
    train(net, run, 3)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        at_exit()
    assert keeper.events(RunEnded) == []
    at_exit()
    assert len(keeper.events(RunEnded)) == 1


def test_leaving_the_with_forgets_the_run(keeper: FakeKeeper, at_exit: Callable[[], None]) -> None:
    net, run = new(keeper)
    with run:
        train(net, run, 2)
    keeper.events()
    at_exit()
    assert keeper.events() == []
