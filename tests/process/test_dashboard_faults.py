"""Dashboards that are killed, cut off or suspended: the run does not notice, and the next dashboard shows it all."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_trainer
from runs import TUI, WITHIN_S, run
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

    def begin(*args: str) -> Terminal:
        terminals.append(Terminal([*TUI, *args], columns=100, rows=30))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def step_of(text: str) -> int:
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


def beyond(step: int) -> Callable[[str], bool]:
    return lambda text: step_of(text) > step


def killed(terminal: Terminal) -> None:
    terminal.child.kill(signal.SIGKILL)
    terminal.ended()


def cut_off(terminal: Terminal) -> None:
    """Close the terminal, as when an SSH connection is lost."""
    watched = os.pidfd_open(terminal.child.pid)
    os.close(terminal.child.fileno())
    assert select.select([watched], [], [], WITHIN_S)[0]
    os.close(watched)


def recorded(folder: Path) -> list[float]:
    with Record.open(folder) as record:
        steps = {
            event.first + n: loss
            for event in record.events()
            if isinstance(event, StepsCompleted)
            for n, loss in enumerate(event.losses)
        }
    assert sorted(steps) == list(range(len(steps))), "no step is lost"
    return [steps[step] for step in range(len(steps))]


@pytest.mark.parametrize(
    ("command", "times", "suspended_s"),
    [pytest.param(TINY, 1, 1.0, id="tiny"), pytest.param(VANISHING, 20, 30.0, id="vanishing", marks=pytest.mark.heavy)],
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
    folder = find_run(None, live=True).folder
    assert run("stop", folder.name).code == 0
    losses = recorded(folder)
    if command is TINY:
        assert losses == [1 / (step + 1) for step in range(len(losses))]
        return
    twin = run("run", "vanishing", "--json", "--steps", str(len(losses)), "--set", "run.threads=1")
    assert losses == twin.losses
