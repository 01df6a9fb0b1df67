"""Runs that end before they have begun, and keepers that are killed: the reason is on screen and on the shell.

No process here imports torch: either a broken torch takes its place, or the script is a shell script.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import TUI, WITHIN_S, Live, children, environment, left_behind, run, signalled
from terminal import Terminal

from tui_descent import cli, output
from tui_descent.dashboard.left import Left
from tui_descent.paths import new_run, socket_path
from tui_descent.protocol import launch as launches
from tui_descent.protocol.launch import Launch

BROKEN = {
    "OSError: libtorch_cpu.so: no such file": "raise OSError('libtorch_cpu.so: no such file')",
    "cannot import name 'nn' from 'torch'": "",
    "RuntimeError: two": "raise RuntimeError('two\\nlines')",
}


_FIRST, *_OTHERS = BROKEN


@pytest.fixture(params=[_FIRST, *(pytest.param(why, marks=pytest.mark.heavy) for why in _OTHERS)])
def broken_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A torch that cannot be imported; returns the reason."""
    (tmp_path / "torch.py").write_text(f"{BROKEN[request.param]}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return str(request.param)


@pytest.fixture
def opened() -> Iterator[list[Terminal]]:
    terminals: list[Terminal] = []
    yield terminals
    for terminal in terminals:
        terminal.close()


def start(opened: list[Terminal], *args: str) -> Terminal:
    opened.append(Terminal([*TUI, *args], columns=80, rows=24))
    return opened[-1]


def shell(terminal: Terminal) -> str:
    """What is on the shell after the dashboard has left the alternate screen."""
    return bytes(terminal.raw).rpartition(b"\x1b[?1049l")[2].decode(errors="replace").replace("\r\n", "\n")


def test_a_torch_that_cannot_be_imported_is_one_line(broken_torch: str, opened: list[Terminal]) -> None:
    terminal = start(opened, "first-descent")
    terminal.wait("failed  at step 0: torch could not be")
    text = terminal.wait("Why the run failed")
    assert "Try python -c 'import torch' · q: leave" in text
    assert broken_torch in " ".join(text.replace("│", " ").split())
    assert "Traceback" not in text
    terminal.press("q")
    assert terminal.ended() == 1
    reason, path = shell(terminal).splitlines()[-2:]
    assert "tui-descent: torch could not be imported: " in reason
    assert broken_torch in reason
    assert reason.endswith(". Try python -c 'import torch'")
    assert path.startswith("tui-descent: the trainer's output is in ")
    assert "Traceback" in Path(path.partition(" is in ")[2]).read_text()
    assert "Traceback" not in shell(terminal)


def test_headless_a_torch_that_cannot_be_imported_is_one_line(broken_torch: str) -> None:
    done = run("first-descent", "--headless")
    assert done.code == 1
    assert broken_torch in done.stderr
    assert "Try python -c 'import torch'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "the trainer's output is in " in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("exit 0", 0, "this script never called watch(): see the README"),
        ("echo usage; exit 2", 2, "the script failed with exit code 2 before it called watch()"),
        ("echo boom; kill -6 $$", 134, "the script was ended by signal 6 before it called watch()"),
    ],
)
def test_a_script_that_ends_before_watch(text: str, code: int, reason: str, opened: list[Terminal]) -> None:
    terminal = start(opened, "exec", "--", "sh", "-c", text)
    terminal.wait(reason)
    terminal.press("q")
    assert terminal.ended() == code
    assert f"tui-descent: {reason}\n" in shell(terminal)


def test_the_output_of_a_script_and_its_size_on_a_real_terminal(opened: list[Terminal]) -> None:
    terminal = start(opened, "exec", "--", "sh", "-c", 'trap "stty size" WINCH; stty size; while :; do sleep 0.1; done')
    terminal.press("7")
    terminal.wait("18 78")
    terminal.screen.resize(40, 120)
    terminal.child.setwinsize(40, 120)
    terminal.wait("33 118")
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("s")
    terminal.wait("q: kill it")
    terminal.press("q")
    assert terminal.ended() == 143
    assert "  | 18 78\n  | 33 118\n" in shell(terminal)


@pytest.mark.parametrize("kind", ["open to others", "a file", "not writable"])
def test_a_refused_socket_folder_is_an_error_of_one_line(kind: str, home: Path, opened: list[Terminal]) -> None:
    sockets = home / "sockets"
    if kind == "a file":
        sockets.write_text("")
    else:
        sockets.mkdir(mode=0o700)
        sockets.chmod(0o777 if kind == "open to others" else 0o500)
    if kind == "not writable" and os.getuid() == 0:
        pytest.skip("root may write everywhere")
    terminal = start(opened, "first-descent")
    assert terminal.ended() == 2
    (line,) = shell(terminal).splitlines()
    assert line.startswith("tui-descent: ")
    assert str(sockets) in line
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.heavy)])
def test_a_signal_while_the_dashboard_is_imported_ends_the_run(
    number: signal.Signals, home: Path, opened: list[Terminal]
) -> None:
    command = signalled(number, "tui_descent.dashboard.app")
    opened.append(Terminal([*command, "vanishing"], columns=80, rows=24))
    assert opened[0].ended() == 128 + number
    assert opened[0].text().strip() == ""
    assert left_behind(home) == []
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "echo no memory >&2; exit 1"])
def test_a_keeper_that_ends_while_it_starts_is_an_error_of_one_line(
    how: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead_keeper(launch: Launch, **_: object) -> subprocess.Popen[bytes]:
        with (launch.path / launches.KEEPER_LOG_FILE).open("ab") as log:
            keeper = subprocess.Popen(["sh", "-c", how], stderr=log)
        keeper.wait()
        return keeper

    monkeypatch.setattr(launches, "start_keeper", dead_keeper)
    monkeypatch.setattr(output, "draw_on_stdout", lambda: None)
    name, folder = new_run("dead")
    launch = Launch(run=name, name="dead", folder=str(folder), socket=str(socket_path(name)), attended=True)
    launch.write()
    assert cli._dashboard(launch) == Left(2)
    (line,) = capsys.readouterr().err.splitlines()
    why = {"exit 3": "exit code 3", "kill -9 $$": "signal 9"}.get(how, "no memory")
    assert line == f"tui-descent: the run's keeper ended while it was starting: {why}"
    assert not folder.exists()
    assert list((home / "sockets").iterdir()) == []


@pytest.mark.parametrize("shown", ["reconnecting", pytest.param("disconnected", marks=pytest.mark.heavy)])
def test_a_killed_keeper_is_shown_and_the_script_goes_on(shown: str, home: Path, opened: list[Terminal]) -> None:
    """Its dashboard gives up after ten seconds, which test_bridge.py tests with fewer, or when the script has ended."""
    text = f"echo begin; while ! test -e {home}/go; do sleep 0.05; done; test -t 1 && echo end"
    terminal = start(opened, "exec", "--", "sh", "-c", text)
    terminal.press("7")
    terminal.wait("begin")
    (keeper,) = children(terminal.child.pid)
    (holder,) = children(keeper)
    ended = os.pidfd_open(holder)
    os.kill(keeper, signal.SIGKILL)
    terminal.wait(shown)
    (home / "go").touch()
    terminal.wait("end")  # the script's output is still shown
    terminal.wait("disconnected")
    terminal.press("q")
    assert terminal.ended() == 4
    assert "tui-descent: the script may still be running; its output is in " in shell(terminal)
    assert select.select([ended], [], [], WITHIN_S)[0]
    os.close(ended)


def test_a_suspended_keeper_is_shown_and_can_be_left(home: Path, opened: list[Terminal]) -> None:
    terminal = start(opened, "exec", "--", "sh", "-c", f"while ! test -e {home}/go; do sleep 0.05; done")
    terminal.wait("importing torch")
    (keeper,) = children(terminal.child.pid)
    os.kill(keeper, signal.SIGSTOP)
    terminal.wait("the run's keeper does not respond (suspended?) · q: leave")
    terminal.press("q")
    assert terminal.ended() == 4
    assert "tui-descent: the run's keeper has not responded for " in shell(terminal)
    assert "tui-descent: the run goes on; come back with: tui-descent attach" in shell(terminal)
    ended = os.pidfd_open(keeper)
    os.kill(keeper, signal.SIGCONT)
    (home / "go").touch()
    assert select.select([ended], [], [], WITHIN_S)[0]
    os.close(ended)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_second_signal_ends_a_script_that_does_not_stop(signals: int, home: Path) -> None:
    ends = f'trap "touch {home}/told" TERM; ' if signals == 1 else ""
    text = f"{ends}touch {home}/up; while ! test -e {home}/told; do sleep 0.05; done; exit 0"
    with Live("exec", "--json", "--headless", "--", "sh", "-c", text) as live:
        live.until(lambda line: line["event"] == "state")
        while not (home / "up").exists():
            select.select([], [], [], 0.01)
        live.process.send_signal(signal.SIGINT)
        live.until(lambda line: line["event"] == "state" and line["state"] == "stopping")
        if signals == 2:
            time.sleep(0.6)  # a signal that comes at once may be the same one, sent to the group
            live.process.send_signal(signal.SIGINT)
        else:
            (home / "told").touch()
        code, last = live.end()
    assert (code, last["status"]) == (130, "stopped")
    assert last["exit_code"] == (0 if signals == 1 else -signal.SIGTERM)


@pytest.mark.parametrize("ignored", [signal.SIGCHLD, signal.SIGHUP])
def test_signals_that_the_parent_ignores_do_not_change_the_exit_code(
    ignored: signal.Signals, broken_torch: None
) -> None:
    text = f"import os, signal, sys; signal.signal({int(ignored)}, signal.SIG_IGN); os.execv(sys.executable, {TUI!r} + "
    for args, code, own in (
        (("first-descent", "--json"), 1, 1),
        (("exec", "--json", "--", "sh", "-c", "exit 7"), 7, 7),
    ):
        outcome = run(command=[sys.executable, "-c", f"{text}{args!r})"])
        assert (outcome.code, outcome.ended["exit_code"]) == (code, own)


def test_under_nohup_a_hangup_does_not_end_a_headless_run(home: Path) -> None:
    text = f"touch {home}/up; while ! test -e {home}/go; do sleep 0.05; done"
    process = subprocess.Popen(
        ["nohup", *TUI, "exec", "--json", "--", "sh", "-c", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    while not (home / "up").exists():
        select.select([], [], [], 0.01)
    process.send_signal(signal.SIGHUP)
    (home / "go").touch()
    out: Any = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 0
    assert b'"status":"finished"' in out
