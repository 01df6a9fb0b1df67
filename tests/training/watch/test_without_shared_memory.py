"""A run whose shared memory cannot be created: a user loop goes on unwatched, a scenario run fails with the reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import nn

from tui_descent import watch
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import RunEnded
from tui_descent.protocol.ring import Ring
from tui_descent.training.progress import Progress
from tui_descent.training.watch.watch import Watch

CODES = (errno.EFBIG, errno.ENOSPC, errno.ENOMEM, errno.EINTR)


def losses(run: Watch | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    found = []
    for _ in range(5):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.step(loss)
        found.append(loss.item())
    return found


def net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_user_loop_goes_on_unwatched(
    code: int, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> Ring:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Ring, "create", refuse)
    plain = losses(None, *net())
    model, optimizer = net()
    with Watch(model, optimizer, link=keeper.link) as run:
        watched = losses(run, model, optimizer)
        run.log("metric", 1.0)
    assert watched == plain
    said = f"no room for the run's shared memory: {os.strerror(code)}; "
    assert capsys.readouterr().err.startswith(f"tui-descent: training continues unwatched: {said}")
    (ended,) = keeper.events(RunEnded)
    assert ended.status == "failed"
    assert ended.reason.startswith(said)


def test_a_scenario_run_fails_with_the_reason(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Ring:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Ring, "create", refuse)
    progress = Progress(keeper.link)
    with pytest.raises(ChannelError, match="File too large; check ulimit -f"):
        progress.create_ring(nn.Linear(2, 2), layers=3)
    assert [event.status for event in keeper.events(RunEnded)] == ["failed"]
    assert progress.link is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TUI_DESCENT_HOME", "~nosuch/x"),
        ("TUI_DESCENT_HOME", "/tmp/\udcff"),
        ("TUI_DESCENT_HOME", "/dev/null"),
        ("TUI_DESCENT_HOME", "/proc/nosuch/x"),
        ("TUI_DESCENT_HOME", "/tmp/" + "x" * 300),
        ("TUI_DESCENT_RUNS_DIR", "~nosuch"),
        ("TUI_DESCENT_UNDO_BUDGET", "lots"),
    ],
)
def test_a_user_loop_goes_on_without_a_usable_environment(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    plain = losses(None, *net())
    model, optimizer = net()
    with watch(model, optimizer) as run:
        assert losses(run, model, optimizer) == plain
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tui-descent: training continues unwatched: ")
    assert value.removesuffix("/x").encode(errors="backslashreplace").decode() in line
    assert list(home.iterdir()) == []
