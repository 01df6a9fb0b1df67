"""A trainer that is stopped (SIGSTOP) and a terminal that is not read: the screen says so, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import TUI, children
from terminal import Terminal
from watched_runs import TINY, VANISHING, beyond, check_record, step_of

Open = Callable[..., Terminal]


@pytest.fixture
def opened() -> Iterator[Open]:
    terminals: list[Terminal] = []

    def begin(*args: str, **how: dict[str, str]) -> Terminal:
        terminals.append(Terminal([*TUI, *args], columns=100, rows=30, **how))  # type: ignore[arg-type]
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def silent(text: str) -> bool:
    """Whether the screen says for how long a scenario's trainer or a user's loop has been silent."""
    return re.search(r"(has not responded|silent) for \d+ s", text) is not None


def trainer_of(dashboard: Terminal) -> int:
    """The innermost process: dashboard, keeper, perhaps the one that holds a script's terminal, trainer."""
    (pid,) = (pid for pid in children(dashboard.child.pid) if children(pid))
    while inner := children(pid):
        (pid,) = inner
    return pid


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
        terminal.wait(lambda text: "escape closes" not in text)
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
