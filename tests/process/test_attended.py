"""A keeper, its trainer and its viewers as processes: signals to each, the death of each, and clean-up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from attended import Start, last_reported, losses
from runs import left_behind, recorded

from tui_descent.protocol.commands import (
    Mark,
    Stop,
)
from tui_descent.protocol.events import (
    CommandRejected,
    HistorySent,
    Noted,
    RunEnded,
    StateChanged,
)


def test_a_run_goes_on_without_viewers_and_ends_at_its_end_with_nothing_left(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=200", pace=100.0)
    a, b = run.viewer(), run.viewer()
    a.until_step(5)
    trainer = run.trainer
    if os.path.exists("/proc/self/maps"):
        assert "libtorch" in Path(f"/proc/{trainer}/maps").read_text()
        assert "libtorch" not in Path(f"/proc/{run.keeper.pid}/maps").read_text(), "the keeper must not load torch"
    a.close()
    b.close()
    late = run.viewer()
    history = late.until_event(HistorySent)
    late.until_step(history.steps + 10)
    late.close()
    assert run.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)
    assert left_behind(home) == []
    assert [status for status, _ in recorded(home)] == ["finished"]
    assert list((home / "sockets").iterdir()) == []


@pytest.mark.heavy  # usual: test_headless.py and test_pty.py, without torch
def test_a_killed_trainer_is_reported_within_a_second_with_its_last_step(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=200.0)
    viewer = run.viewer()
    viewer.until_step(30)
    os.kill(run.trainer, signal.SIGKILL)
    killed_s = time.monotonic()
    ended = viewer.until_event(RunEnded, within_s=20)
    took_s = time.monotonic() - killed_s
    assert ended.status == "lost"
    assert ended.reason == f"trainer lost (signal 9) at step {ended.step}"
    assert ended.exit_code == -9
    assert sorted(losses(viewer)) == list(range(ended.step)), "every update it made is reported"
    assert took_s < 1.0
    assert run.wait(20) == 0
    assert ended.log_path is not None
    assert Path(ended.log_path).exists()
    assert list((home / "sockets").iterdir()) == []


@pytest.mark.heavy
def test_a_suspended_trainer_is_reported_as_silent_and_loses_nothing(start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=100.0)
    viewer = run.viewer()
    viewer.until_step(20)
    trainer = run.trainer
    os.kill(trainer, signal.SIGSTOP)
    try:
        silent = viewer.until(
            lambda m: isinstance(m, StateChanged) and m.reason.startswith("the trainer has not responded for "), 15
        )
        assert isinstance(silent, StateChanged)
        assert silent.state == "running"
        marked = viewer.ask(Mark(text="asked in the silence"))
        viewer.until(lambda m: isinstance(m, StateChanged) and m.reason == "the trainer has not responded for 6 s", 15)
        assert not viewer.events(RunEnded)
        assert viewer.replies(marked) == []
    finally:
        os.kill(trainer, signal.SIGCONT)
    viewer.until(lambda m: isinstance(m, Noted) and m.text == "the trainer responds again", 20)
    viewer.until(lambda m: bool(viewer.replies(marked)), 20)
    viewer.until_step(last_reported(viewer) + 50)
    assert sorted(losses(viewer)) == list(range(last_reported(viewer) + 1))
    assert viewer.events(StateChanged)[-1].reason == ""


@pytest.mark.heavy
def test_commands_not_carried_out_before_the_end_are_rejected(start: Start) -> None:
    run = start("healthy", "run.steps=10000000", pace=1.0)
    viewer = run.viewer()
    viewer.until_step(1)
    os.kill(run.trainer, signal.SIGSTOP)
    number = viewer.ask(Mark())
    trainer = run.trainer
    viewer.until(lambda m: isinstance(m, StateChanged) and "not responded" in m.reason, 30)
    os.kill(trainer, signal.SIGKILL)
    viewer.until_event(RunEnded)
    (reply,) = viewer.replies(number)
    assert isinstance(reply, CommandRejected)
    assert "ended before" in reply.reason


def test_a_keeper_that_gets_sigterm_ends_the_run_properly(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    run.keeper.terminate()
    ended = viewer.until_event(RunEnded, within_s=15)
    assert (ended.status, ended.exit_code) == ("stopped", 0)
    assert run.wait(10) == 0
    assert recorded(home) == [("stopped", ended.step)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.heavy  # usual: test_stop_on_signal.py
def test_a_trainer_that_gets_a_signal_finishes_its_step(number: signal.Signals, start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    os.kill(run.trainer, number)
    ended = viewer.until_event(RunEnded, within_s=10)
    assert (ended.status, ended.reason, ended.exit_code) == ("stopped", number.name, 0)
    assert ended.loss is not None
    assert sorted(losses(viewer)) == list(range(ended.step))


@pytest.mark.heavy
def test_a_trainer_that_does_not_react_to_stop_is_killed(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    trainer = run.trainer
    os.kill(trainer, signal.SIGSTOP)
    viewer.ask(Stop())
    ended = viewer.until_event(RunEnded, within_s=30)
    assert (ended.status, ended.reason) == ("stopped", "stopped by a viewer; the trainer had to be killed")
    assert run.wait(20) == 0
    assert left_behind(home) == []
