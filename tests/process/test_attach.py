"""Leaving a run and coming back to it, in real terminals."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
import tiny_trainer
from runs import TUI, WITHIN_S, Live, children, run, stop_keepers
from terminal import Terminal

from tui_descent.run_list import find_run

Open = Callable[..., Terminal]
SCRIPT = ("exec", "--", TUI[0], tiny_trainer.__file__)


@pytest.fixture
def opened() -> Iterator[Open]:
    terminals: list[Terminal] = []

    def begin(*args: str, columns: int = 100, rows: int = 30) -> Terminal:
        terminals.append(Terminal([*TUI, *args], columns=columns, rows=rows))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def step_of(text: str) -> int:
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


def shell(terminal: Terminal) -> str:
    return bytes(terminal.raw).rpartition(b"\x1b[?1049l")[2].decode(errors="replace")


def test_detach_attach_and_stop(opened: Open) -> None:
    first = opened(*SCRIPT)
    first.wait(lambda text: step_of(text) >= 3)
    first.press("q")
    first.wait("Leave this run?")
    first.press("d")
    assert first.ended() == 0
    place = r"detached: (\S+) at step (\d+), training loss \S+"
    left_at = re.search(rf"{place}; come back with: tui-descent attach \1\r", shell(first))
    assert left_at is not None
    second, looking = opened("attach"), opened("attach", "--read-only", left_at[1][:12])
    for terminal in (second, looking):
        terminal.wait(lambda text: step_of(text) > int(left_at[2]))
        terminal.wait("λ")  # the name that the script has given itself
    looking.press("space")
    looking.wait("read-only")
    looking.press("q")
    assert looking.ended() == 0
    assert "detached: " in shell(looking)
    second.press("q")
    second.wait("Leave this run?")
    second.press("s")
    assert second.ended() == 0
    assert "stopped" in shell(second)
    outcome = run("attach")
    assert (outcome.code, len(outcome.stderr.splitlines())) == (2, 1)


def test_a_headless_run_can_be_attached_and_stopped(opened: Open) -> None:
    with Live("exec", "--json", "--headless", *SCRIPT[1:]) as live:
        live.until(lambda line: line["event"] == "step")
        terminal = opened("attach", columns=80, rows=24)
        terminal.wait(lambda text: step_of(text) >= 3)
        terminal.child.kill(signal.SIGHUP)
        assert terminal.ended() == 129
        live.until(lambda line: line["event"] == "step")
        outcome = run("stop", find_run(None, live=True).run)
        assert (outcome.code, outcome.stderr) == (0, "")
        assert re.match(r"\S+ → λ: stopped · \d+ steps · loss 0.5\n", outcome.stdout)
        code, last = live.end()
        assert (code, last["status"]) == (0, "stopped")


@pytest.mark.heavy  # usual: test_bridge.py, and test_replaced_keeper.py without a dashboard
def test_dashboards_come_back_by_themselves_when_the_keeper_is_replaced(opened: Open) -> None:
    first = opened("vanishing", "--set", "run.steps=1000000", "--set", "run.threads=1")
    first.wait(lambda text: step_of(text) >= 3)
    second = opened("attach")
    second.wait(lambda text: step_of(text) >= 3)
    (keeper,) = (pid for pid in children(first.child.pid) if children(pid))
    os.kill(keeper, signal.SIGKILL)
    for terminal in (first, second):
        last = step_of(terminal.text())
        terminal.wait(lambda text: step_of(text) > last + 30)  # noqa: B023
        assert "disconnected" not in terminal.text()
    second.press("r")
    second.wait("residual off → on")
    first.wait("residual on")
    first.press("q")
    first.wait("Leave this run?")
    first.press("s")
    assert first.ended() == 0
    second.wait("stopped")


def test_a_terminal_that_is_closed_leaves_the_run_going(opened: Open, home: object) -> None:
    terminal = opened(*SCRIPT)
    terminal.wait(lambda text: step_of(text) >= 3)
    watched = os.pidfd_open(terminal.child.pid)
    os.close(terminal.child.fileno())  # as when an SSH connection is cut
    assert select.select([watched], [], [], WITHIN_S)[0]
    os.close(watched)
    again = opened("attach")
    again.wait(lambda text: step_of(text) >= 10)
    stop_keepers(home)  # type: ignore[arg-type]
    again.wait("stopped")
    again.press("q")
    assert again.ended() == 0


@pytest.mark.heavy
def test_stop_says_how_to_end_a_script_that_does_not_stop() -> None:
    with Live("exec", "--json", "--headless", "--", "sh", "-c", "sleep 600") as live:
        live.until(lambda line: line["event"] == "state")
        name = find_run(None, live=True).run
        stopping = subprocess.Popen([*TUI, "stop", name], stderr=subprocess.PIPE, text=True)
        assert stopping.stderr is not None
        assert stopping.stderr.readline() == (
            f"tui-descent: still waiting; to end it at once: tui-descent stop {name} --kill\n"
        )
        assert run("stop", name, "--kill").code == 0
        assert stopping.wait(WITHIN_S) == 0
        stopping.stderr.close()
        assert live.end()[1]["status"] == "stopped"
