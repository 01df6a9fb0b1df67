"""Dashboards that are killed, cut off or suspended: the run does not notice, and the next dashboard shows it all."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import TUI, WITHIN_S
from terminal import Terminal
from watched_runs import TINY, VANISHING, beyond, check_record, step_of

Open = Callable[..., Terminal]


@pytest.fixture
def opened() -> Iterator[Open]:
    terminals: list[Terminal] = []

    def begin(*args: str) -> Terminal:
        terminals.append(Terminal([*TUI, *args], columns=100, rows=30))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def killed(terminal: Terminal) -> None:
    terminal.child.kill(signal.SIGKILL)
    terminal.ended()


def cut_off(terminal: Terminal) -> None:
    """Close the terminal, as when an SSH connection is lost."""
    watched = os.pidfd_open(terminal.child.pid)
    os.close(terminal.child.fileno())
    assert select.select([watched], [], [], WITHIN_S)[0]
    os.close(watched)


@pytest.mark.parametrize(
    ("command", "times", "suspended_s"),
    [pytest.param(TINY, 1, 1.0, id="tiny"), pytest.param(VANISHING, 50, 30.0, id="vanishing", marks=pytest.mark.heavy)],
)
def test_dashboards_that_come_and_go_do_not_disturb_the_run(
    command: tuple[str, ...], times: int, suspended_s: float, opened: Open, home: Path
) -> None:
    terminal, seen = opened(*command), 0
    for n in range(times):
        for leave in (killed, cut_off):
            seen = step_of(terminal.wait(beyond(seen + 5)))
            leave(terminal)
            terminal = opened("attach")
        if n == 1:
            opened("attach", "--read-only").wait(beyond(seen))  # it stays to the end
    terminal.wait(beyond(seen))
    terminal.child.kill(signal.SIGSTOP)
    time.sleep(suspended_s)
    terminal.child.kill(signal.SIGCONT)
    last = step_of(terminal.text())
    terminal.wait(beyond(last + 5))
    check_record(command)
