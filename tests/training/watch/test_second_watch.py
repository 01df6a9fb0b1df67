"""A second `watch()` in a process whose first run is shown by `exec`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fake_keeper import FakeKeeper
from msgspec.structs import replace
from torch import nn

from tui_descent.protocol.events import Noted
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.watch import user_loop
from tui_descent.training.watch.watch import Watch

WORDS = "this process already has a watched run: a second watch() trains normally but is not shown"


@pytest.fixture
def under_exec(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> FakeKeeper:
    keeper.link.launch = replace(keeper.link.launch, command=("python", "train.py"))
    found: Iterator[KeeperLink] = iter([keeper.link])
    monkeypatch.setattr(KeeperLink, "inherited", lambda: next(found, None))
    monkeypatch.setattr(user_loop, "_shown", user_loop.ShownRun())
    return keeper


def watched() -> Watch:
    net = nn.Linear(2, 1)
    return user_loop.watch(net, torch.optim.SGD(net.parameters(), lr=0.1))


def train(run: Watch, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = run.model(torch.ones(4, 2)).square().mean()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.step(loss)
        losses.append(loss.item())
    return losses


def test_a_second_watch_is_not_shown_and_a_warning_says_so_once(
    under_exec: FakeKeeper, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched() as run:
        first = train(run, 8)
        for _ in range(2):
            with watched() as second:
                assert len(set(train(second, 3))) == 3, "it trains"
        first += train(run, 4)
    assert [record.loss for record in under_exec.steps()] == first
    notes = under_exec.events(Noted)
    assert [(note.step, note.level, note.text) for note in notes] == [(8, "warning", WORDS)]
    assert capsys.readouterr().err == f"tui-descent: {WORDS}\n"


def test_a_second_watch_after_the_first_is_over_is_only_printed(
    under_exec: FakeKeeper, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched() as run:
        first = train(run, 8)
    for _ in range(2):
        with watched() as second:
            train(second, 3)
    assert [record.loss for record in under_exec.steps()] == first
    assert under_exec.events(Noted) == []
    assert capsys.readouterr().err == f"tui-descent: {WORDS}\n"
