"""A user's script runs on a terminal of its own, which outlives the keeper. Here the scripts are shell scripts."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tui_descent.headless import EXIT_CODES
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Script, Trainer
from tui_descent.paths import new_run
from tui_descent.protocol.events import AnyEvent, Noted, RunEnded, StateChanged
from tui_descent.protocol.exit_status import exit_code
from tui_descent.protocol.launch import CLOSED, CLOSED_FILE, CONNECTED_FILE, LOG_FILE, Launch

WITHIN_S = 60.0


def launch_of(*command: str, **settings: Any) -> Launch:
    run, folder = new_run("script")
    launch = Launch(run=run, name="script", folder=str(folder), socket=None, command=command, **settings)
    launch.write()
    return launch


def run(*command: str, **settings: Any) -> tuple[RunEnded, str, list[AnyEvent]]:
    """Run a command under a keeper to its end; returns also what it printed and the events."""
    launch = launch_of(*command, **settings)
    events: list[AnyEvent] = []
    ended = Keeper(launch, on_event=events.append).run(lambda: Trainer.start(launch))
    return ended, (launch.path / LOG_FILE).read_text(), events


@pytest.fixture
def script() -> Iterator[Any]:
    """Starts a script without a keeper; the test is in the keeper's place."""
    started: list[Script] = []

    def start(text: str, launch: Launch | None = None) -> tuple[Script, Path]:
        launch = launch or launch_of("sh", "-c", text)
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]  # in the place of socket and ring
        started.append(Script.start(launch, dict(os.environ), files))
        for file in files:
            os.close(file)
        return started[-1], launch.path / LOG_FILE

    yield start
    for one in started:
        one.close()
        one.process.kill()
        one.process.wait()


def wait_for(text: str, log: Path) -> str:
    end_s = time.monotonic() + WITHIN_S
    while text not in (found := log.read_text() if log.exists() else ""):
        assert time.monotonic() < end_s, found
        select.select([], [], [], 0.01)
    return found


def wait_exited(script: Script) -> int | None:
    while not script.exited():
        assert select.select([script.control], [], [], WITHIN_S)[0]
    return script.exit_code


@pytest.mark.parametrize("size", [(80, 24), (118, 34), (20, 5)])
def test_the_script_has_a_terminal_of_the_given_size(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "33")
    text = (
        "stty size; tty; for n in 0 1 2; do test -t $n && echo terminal; done; echo [$COLUMNS]; : </dev/tty && echo own"
    )
    ended, printed, _ = run("sh", "-c", text, terminal_size=size)
    lines = printed.splitlines()
    assert lines[0] == f"{size[1]} {size[0]}"
    assert lines[1].startswith("/dev/")
    assert lines[2:] == ["terminal"] * 3 + ["[]", "own"]
    assert ended.status == "finished"


def test_reading_from_the_terminal_gives_the_end_of_the_input() -> None:
    _, printed, _ = run("sh", "-c", "read x || echo end; cat; read x || echo again")
    assert printed == "end\nagain\n"


def test_the_size_follows_the_panel(script: Any) -> None:
    started, log = script('trap "stty size" WINCH; echo ready; while :; do sleep 0.05; done')
    wait_for("ready", log)
    started.set_size(101, 31)
    assert wait_for("31 101", log) == "ready\n31 101\n"
    started.signal(signal.SIGKILL)
    assert wait_exited(started) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("text", "status", "own", "code", "reason"),
    [
        ("exit 0", "finished", 0, 0, "this script never called watch(): see "),
        ("exit 2", "failed", 2, 2, "the script failed with exit code 2 before it called watch()"),
        ("echo no module >&2; exit 3", "failed", 3, 3, "the script failed with exit code 3 before it called watch()"),
        ("kill -11 $$", "failed", -11, 139, "the script was ended by signal 11 before it called watch()"),
        ("kill -9 $$", "failed", -9, 137, "the script was ended by signal 9 before it called watch()"),
    ],
)
def test_the_exit_code_of_a_script_that_has_not_called_watch(
    text: str, status: str, own: int, code: int, reason: str
) -> None:
    ended, _, _ = run("sh", "-c", text)
    assert (ended.status, ended.exit_code, ended.step) == (status, own, 0)
    assert ended.reason.startswith(reason)
    assert exit_code(ended, EXIT_CODES) == code


@pytest.mark.parametrize(("own", "status", "code"), [(0, "finished", 0), (7, "failed", 7), (-9, "lost", 4)])
def test_a_script_that_has_called_watch_but_made_no_step(own: int, status: str, code: int) -> None:
    end = f"kill {own} $$" if own < 0 else f"exit {own}"
    ended, _, _ = run("sh", "-c", f'touch "$TUI_DESCENT_RUN/{CONNECTED_FILE}"; {end}')
    assert (ended.status, ended.exit_code, exit_code(ended, EXIT_CODES)) == (status, own, code)
    if status == "finished":
        assert ended.reason == "watch() was called, but no run.step() followed in the same process"


@pytest.mark.parametrize(("own", "status"), [(0, "finished"), (5, "failed"), (-15, "failed")])
def test_a_watch_that_cannot_be_reached_is_reported_plainly(own: int, status: str) -> None:
    end = f"kill {own} $$" if own < 0 else f"exit {own}"
    touched = " ".join(f'"$TUI_DESCENT_RUN/{file}"' for file in (CONNECTED_FILE, CLOSED_FILE))
    ended, _, events = run("sh", "-c", f"touch {touched}; sleep 0.7; {end}")
    assert ended.reason.startswith(CLOSED)
    assert (ended.status, ended.exit_code) == (status, own)
    assert [event.text for event in events if isinstance(event, Noted)] == [CLOSED]
    assert any(isinstance(event, StateChanged) and event.reason == CLOSED for event in events)


def test_a_command_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    ended, printed, _ = run(str(broken))
    assert (ended.status, ended.exit_code) == ("failed", 127)
    assert "cannot run" in printed


def test_a_system_without_terminals_is_reported() -> None:
    text = (
        "import os, sys; os.openpty = lambda: os.open('/nowhere', 0); from tui_descent.keeper import script_terminal; "
    )
    launch = launch_of("true")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        numbers = [str(theirs.fileno()), "0", "0", "80", "24"]
        command = [sys.executable, "-c", f"{text}sys.exit(script_terminal.main(sys.argv[1:]))", launch.folder, *numbers]
        assert subprocess.run([*command, "true"], pass_fds=[theirs.fileno()], check=False).returncode == 1
        assert b"code" in ours.recv(1000)
    assert (launch.path / LOG_FILE).read_text().startswith("tui-descent: cannot open a terminal (pty) for the script: ")


def test_output_is_kept_up_to_its_last_byte_and_in_full() -> None:
    ended, printed, _ = run("sh", "-c", "seq 1 20000; printf last")
    assert printed == "".join(f"{n}\n" for n in range(1, 20001)) + "last"
    assert ended.log_path is None, "nothing has failed"


def test_endless_output_is_capped() -> None:
    ended, printed, _ = run("sh", "-c", "echo first; yes a line of some length | head -c 5500000; echo end")
    assert printed.startswith("first\n")
    assert printed.endswith("end\n")
    assert "bytes left out" in printed
    assert len(printed) < 3_000_000
    assert ended.status == "finished"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_the_script_goes_on_when_its_keeper_is_gone(number: signal.Signals, script: Any) -> None:
    ends = "trap 'echo hung up' HUP; trap 'echo interrupted' INT; trap 'echo terminated' TERM; echo ready; "
    waits = (
        "while ! test -e $TUI_DESCENT_HOME/go; do sleep 0.02; done; stty size && echo still here && echo 2 >/dev/tty"
    )
    started, log = script(ends + waits)
    wait_for("ready", log)
    started.control.close()  # as if the keeper was killed
    os.kill(started.process.pid, number)  # as at a logout
    (Path(os.environ["TUI_DESCENT_HOME"]) / "go").touch()
    assert started.process.wait(WITHIN_S) == 0
    assert log.read_text() == "ready\n24 80\nstill here\n2\n"


def test_a_keeper_killed_by_sigkill_takes_nothing_with_it(tmp_path: Path) -> None:
    done = tmp_path / "done"
    launch = launch_of(
        "sh", "-c", f"echo $PPID; while ! test -e {tmp_path}/go; do sleep 0.02; done; echo more && touch {done}"
    )
    text = "import sys; from tui_descent.keeper.process import main; sys.exit(main(sys.argv[1:]))"
    keeper = subprocess.Popen([sys.executable, "-c", text, launch.folder], start_new_session=True)
    log = launch.path / LOG_FILE
    terminal = int(wait_for("\n", log))
    ended = os.pidfd_open(terminal)
    os.killpg(keeper.pid, signal.SIGKILL)
    keeper.wait()
    (tmp_path / "go").touch()
    assert select.select([ended], [], [], WITHIN_S)[0], "it ends when the script has ended"
    os.close(ended)
    assert done.exists()
    assert log.read_text() == f"{terminal}\nmore\n"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_children_that_outlive_the_script_are_not_hung_up(tmp_path: Path) -> None:
    waits = f"while ! test -e {tmp_path}/go; do sleep 0.02; done"
    late = f"(trap 'echo hup > {tmp_path}/hup' HUP; {waits}; echo late) & exit 0"
    ended, printed, _ = run("sh", "-c", f"echo early; {late[:-1]}1")
    assert (ended.status, printed) == ("failed", "early\n"), "the run does not wait for them"
    (tmp_path / "go").touch()
    assert ended.log_path is not None
    wait_for("late", Path(ended.log_path))
    assert not (tmp_path / "hup").exists()
    gc.collect()  # the warning comes when the keeper is freed: here, and not in a later test


def test_a_killed_terminal_process_is_reported(script: Any) -> None:
    started, log = script("echo ready; sleep 60")
    wait_for("ready", log)
    started.process.kill()
    assert wait_exited(started) is None
