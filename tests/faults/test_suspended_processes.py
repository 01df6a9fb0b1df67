"""A trainer that is stopped (SIGSTOP) and a terminal that is not read: the screen says so, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_trainer
from runs import TUI, children, run
from terminal import Terminal

from tui_descent.protocol.events import StepsCompleted
from tui_descent.run_list import find_run
from tui_descent.telemetry.record import Record

Open = Callable[..., Terminal]
TINY = ("exec", "--", sys.executable, tiny_trainer.__file__)
VANISHING = ("vanishing", "--pace", "60", "--set", "run.steps=1000000", "--set", "run.threads=1")


@pytest.fixture
def opened() -> Iterator[Open]:
    terminals: list[Terminal] = []

    def begin(*args: str, **how: dict[str, str]) -> Terminal:
        terminals.append(Terminal([*TUI, *args], columns=100, rows=30, **how))  # type: ignore[arg-type]
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def step_of(text: str) -> int:
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


def beyond(step: int) -> Callable[[str], bool]:
    return lambda text: step_of(text) > step


def silent(text: str) -> bool:
    """Whether the screen says for how long a scenario's trainer or a user's loop has been silent."""
    return re.search(r"(has not responded|silent) for \d+ s", text) is not None


def trainer_of(dashboard: Terminal) -> int:
    """The innermost process: dashboard, keeper, perhaps the one that holds a script's terminal, trainer."""
    (pid,) = (pid for pid in children(dashboard.child.pid) if children(pid))
    while inner := children(pid):
        (pid,) = inner
    return pid


def check_record(command: tuple[str, ...]) -> None:
    """Stop the run. No step is missing in its record, and its losses are those of an undisturbed run."""
    folder: Path = find_run(None, live=True).folder
    assert run("stop", folder.name).code == 0
    with Record.open(folder) as record:
        steps = [event for event in record.events() if isinstance(event, StepsCompleted)]
    losses = [loss for event in steps for loss in event.losses]
    assert [event.first + n for event in steps for n in range(len(event.losses))] == list(range(len(losses)))
    if command is TINY:
        assert losses == [1 / (step + 1) for step in range(len(losses))]
    else:
        twin = run("run", "vanishing", "--json", "--steps", str(len(losses)), "--set", "run.threads=1")
        assert losses == twin.losses


@pytest.mark.parametrize(
    ("command", "stopped_s"),
    [pytest.param(TINY, 0.0, id="tiny"), pytest.param(VANISHING, 10.0, id="vanishing", marks=pytest.mark.heavy)],
)
def test_stopped_trainer_is_shown_keys_answer_and_nothing_is_lost(
    command: tuple[str, ...], stopped_s: float, opened: Open, home: Path
) -> None:
    terminal = opened(*command)
    terminal.wait(beyond(10))
    trainer = trainer_of(terminal)
    os.kill(trainer, signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        text = terminal.wait(silent, within=15.0)  # at most five seconds on an idle machine
        assert "lost" not in text
        terminal.press("?")
        terminal.wait("escape closes")
        terminal.press("escape")
        terminal.press("3")
        terminal.wait("Events")
        last = step_of(terminal.text())
        while time.monotonic() < stopped + stopped_s:
            terminal.read(0.2)
        assert step_of(terminal.text()) == last
    finally:
        os.kill(trainer, signal.SIGCONT)
    terminal.wait(lambda text: step_of(text) > last + 5 and not silent(text))
    check_record(command)


@pytest.mark.heavy  # usual: test_slow_terminal.py, test_viewers.py
def test_terminal_that_is_not_read_for_a_minute_does_not_hold_up_the_run(opened: Open, home: Path) -> None:
    stalled = opened(*VANISHING)
    seen = step_of(stalled.wait(beyond(20)))
    time.sleep(60)  # nothing reads its output
    second = opened("attach")
    now = step_of(second.wait(beyond(seen + 60 * 30)))  # at least half of its pace of 60 steps a second
    stalled.wait(beyond(now))
    time.sleep(20)  # it is stalled again
    begun = time.monotonic()
    stalled.child.kill(signal.SIGTERM)
    while stalled.child.isalive() and time.monotonic() < begun + 30:
        time.sleep(0.05)
    assert time.monotonic() - begun < 10  # five seconds on an idle machine
    second.wait(beyond(now + 60))
    check_record(VANISHING)


def test_terminal_without_cursor_movement_gets_plain_lines(opened: Open) -> None:
    terminal = opened(*TINY, "5", env={"TERM": "dumb"})
    assert terminal.ended() == 0
    assert b"\x1b" not in terminal.raw
    assert b"running headless" in terminal.raw.splitlines()[0]
    assert "finished" in terminal.text()
