"""Dashboards over SSH and in tmux whose connection is lost: the run goes on, and the next dashboard shows it all."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ssh_server
from runs import TUI, WITHIN_S, children
from ssh_server import SshServer
from terminal import Terminal
from watched_runs import TINY, VANISHING, beyond, check_record, step_of

Open = Callable[..., Terminal]
WITHOUT_SSHD = ssh_server.why_not()
needs_sshd = pytest.mark.skipif(WITHOUT_SSHD is not None, reason=WITHOUT_SSHD or "")
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


@pytest.fixture
def opened() -> Iterator[Open]:
    terminals: list[Terminal] = []

    def begin(command: list[str]) -> Terminal:
        terminals.append(Terminal(command, columns=100, rows=30))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with ssh_server.ssh_server(tmp_path) as started:
        yield started


def remote(server: SshServer, home: Path, *args: str) -> list[str]:
    """The command that a person types: `ssh -t HOST tui-descent …`."""
    words = ("env", f"TUI_DESCENT_HOME={home}", "LANG=C.UTF-8", *TUI, *args)
    return server.command("cd", shlex.quote(os.getcwd()), "&&", *map(shlex.quote, words))


def dashboards(home: Path) -> list[int]:
    """The processes of the dashboards, without the shells that have started them."""
    table = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in table.splitlines()]
    pids = [int(pid) for pid, *words in found if words[:3] == list(TUI)]
    return [pid for pid in pids if f"TUI_DESCENT_HOME={home}" in Path(f"/proc/{pid}/environ").read_text()]


def wait_for_end(pid: int) -> None:
    ended = os.pidfd_open(pid)
    assert select.select([ended], [], [], WITHIN_S)[0]
    os.close(ended)


def client_killed(terminal: Terminal, server: SshServer) -> None:
    terminal.child.kill(signal.SIGKILL)


def server_killed(terminal: Terminal, server: SshServer) -> None:
    """Kill the process of sshd that serves this connection, with its helper."""
    (sshd,) = children(server.process.pid)
    for pid in (sshd, *(child for child in children(sshd) if "sshd" in Path(f"/proc/{child}/comm").read_text())):
        os.kill(pid, signal.SIGKILL)


RUNS = [pytest.param(TINY, id="tiny"), pytest.param(VANISHING, id="vanishing", marks=pytest.mark.heavy)]


@needs_sshd
@pytest.mark.parametrize("command", RUNS)
def test_run_goes_on_when_the_connection_is_cut(
    command: tuple[str, ...], server: SshServer, opened: Open, home: Path
) -> None:
    terminal, seen = opened(remote(server, home, *command)), 0
    for cut in (client_killed, server_killed):
        seen = step_of(terminal.wait(beyond(seen + 5)))
        (dashboard,) = dashboards(home)
        cut(terminal, server)
        wait_for_end(dashboard)
        terminal.ended()
        terminal = opened(remote(server, home, "attach"))
    terminal.wait(beyond(seen + 5))
    if command is TINY:
        terminal.press("3")
        terminal.wait("0.1 → 0.2")  # what has happened at step 0
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("d")
    assert terminal.ended() == 0
    assert b"detached: " in terminal.raw
    check_record(command)


@needs_sshd
@pytest.mark.heavy
def test_link_that_no_longer_answers_does_not_hold_up_the_run(server: SshServer, opened: Open, home: Path) -> None:
    stalled = opened(remote(server, home, *VANISHING))
    seen = step_of(stalled.wait(beyond(20)))
    stalled.child.kill(signal.SIGSTOP)  # nothing is read any more, and nothing is closed
    time.sleep(60)
    second = opened(remote(server, home, "attach"))
    seen = step_of(second.wait(beyond(seen + 60 * 30)))  # at least half of its pace of 60 steps a second
    stalled.child.kill(signal.SIGCONT)
    stalled.wait(beyond(seen))
    for terminal in (stalled, second):
        terminal.press("q")
        terminal.wait("Leave this run?")
        terminal.press("d")
        assert terminal.ended() == 0
    check_record(VANISHING)


@needs_tmux
@pytest.mark.parametrize("command", RUNS)
def test_run_goes_on_when_tmux_ends(
    command: tuple[str, ...], opened: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TMUX_TMPDIR", str(home))
    tmux = ["tmux", "-u", "-L", "links", "-f", "/dev/null"]
    try:
        terminal = opened([*tmux, "new-session", shlex.join([*TUI, *command])])
        seen = step_of(terminal.wait(beyond(5)))
        terminal.child.kill(signal.SIGKILL)
        terminal.ended()
        terminal = opened([*tmux, "attach"])  # the same dashboard
        seen = step_of(terminal.wait(beyond(seen + 5)))
        (dashboard,) = dashboards(home)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
    wait_for_end(dashboard)
    terminal = opened([*TUI, "attach"])
    terminal.wait(beyond(seen + 5))
    check_record(command)
