"""The dashboard process: no torch, the terminal is restored, and it ends when the terminal is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

LOADED = """
import sys
import tui_descent.dashboard.app, tui_descent.dashboard.gallery
from tui_descent.dashboard.dialogs import activation, help, layer, leave, number
for name in ("torch", "tui_descent.training", "tui_descent.instruments", "tui_descent.keeper"):
    assert name not in sys.modules, name
print("clean")
"""
ALONE = """
import sys
from pathlib import Path
from tui_descent.dashboard.app import run_dashboard
sys.exit(run_dashboard(Path(sys.argv[1]), name="alone").code)
"""


def test_the_dashboard_does_not_import_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "clean", done.stderr


IN_TIME = """
import os, signal, threading
from pathlib import Path
from tui_descent.dashboard import signals as module
from tui_descent.dashboard.app import DescentApp

module.EXIT_TIMEOUT_S = 30.0
signals = module.Signals()
app = DescentApp(Path("nobody"), name="alone", signals=signals)
run = app.run
def headless():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return run(headless=True)
app.run = headless
module.run_app(app, signals)
for thread in threading.enumerate():
    if isinstance(thread, threading.Timer):
        thread.join(20)
        assert not thread.is_alive(), "the deadline would end this process"
print(128 + signals.caught, "still here")
"""
GALLERY = """
import sys
from tui_descent.dashboard.gallery import pick
sys.exit(pick())
"""
THE_COMMAND = """
import sys
from tui_descent.cli import main
sys.exit(main(sys.argv[2:]))
"""
# The sequences that switch off what Textual switches on; the last one that it sends comes last.
MODES = [
    b"\x1b[?1049l",
    b"\x1b[?25h",
    b"\x1b[?1000l",
    b"\x1b[?1003l",
    b"\x1b[?1006l",
    b"\x1b[?2004l",
    b"\x1b[<u",
    b"\x1b[?1004l",
]
STALLED = [
    pytest.param(ALONE, signal.SIGTERM, id="run-SIGTERM"),
    pytest.param(GALLERY, signal.SIGHUP, id="gallery-SIGHUP", marks=pytest.mark.heavy),
    pytest.param(ALONE, signal.SIGINT, id="run-SIGINT", marks=pytest.mark.heavy),
    pytest.param(THE_COMMAND, signal.SIGTERM, id="command-SIGTERM"),
]


class Started:
    """A program in a terminal of its own, once it has drawn. `modes` are the terminal's settings from before."""

    def __init__(self, tmp_path: Path, script: str = ALONE, **env: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "nobody")],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", **env},
        )
        # Only cells that change are sent, so the words need not come in one piece.
        screen = pyte.Screen(120, 40)
        stream = pyte.ByteStream(screen)
        end = time.monotonic() + 120
        while not any(words in "\n".join(screen.display) for words in ("connecting to the run", "What it shows")):
            if time.monotonic() > end:
                self.close()
                raise AssertionError("\n".join(screen.display))
            if select.select([self.master], [], [], 0.1)[0]:
                stream.feed(os.read(self.master, 65536))

    def stall(self) -> None:
        """Fill the terminal's buffer, which nobody reads, and let the program draw into it."""
        other = os.open(os.ttyname(self.slave), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        while select.select([], [other], [], 0.3)[1]:
            with contextlib.suppress(BlockingIOError):
                os.write(other, b"\x1b[31mfull\x1b[" * 50)
        os.close(other)
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Started]:
    begun = Started(tmp_path, getattr(request, "param", ALONE))
    yield begun
    begun.close()


def drained(master: int) -> bytes:
    """What a program that has ended or is about to end has written, up to the last mode that is switched off."""
    seen = b""
    end = time.monotonic() + 20
    while MODES[-1] not in seen and time.monotonic() < end and select.select([master], [], [], 10)[0]:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    "started", [ALONE, pytest.param(GALLERY, marks=pytest.mark.heavy)], indirect=True, ids=["run", "gallery"]
)
def test_a_signal_restores_the_terminal(started: Started, number: signal.Signals) -> None:
    started.process.send_signal(number)
    seen = drained(started.master)
    assert started.process.wait(5) == 128 + number
    assert all(mode in seen for mode in MODES)
    assert termios.tcgetattr(started.slave) == started.before


@pytest.mark.parametrize("started", [ALONE, GALLERY], indirect=True, ids=["run", "gallery"])
def test_a_terminal_that_is_gone_ends_the_dashboard_without_a_signal(started: Started) -> None:
    for fd in (started.slave, started.master):
        os.close(fd)
    assert started.process.wait(60) == 128 + signal.SIGHUP


@pytest.mark.parametrize(("started", "number"), STALLED, indirect=["started"])
def test_a_signal_restores_a_terminal_that_takes_no_more_output(started: Started, number: signal.Signals) -> None:
    started.stall()
    begun_s = time.monotonic()
    started.process.send_signal(number)
    assert started.process.wait(20) == 128 + number
    assert time.monotonic() - begun_s > 2.5, "the usual way of leaving is tried first"
    assert termios.tcgetattr(started.slave) == started.before
    last = drained(started.master)[-300:]
    assert all(mode in last for mode in MODES), last


def test_the_deadline_is_cancelled_if_the_app_ends_in_time(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", IN_TIME], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout) == (0, "143 still here\n"), process.stderr


def test_the_process_ends_when_its_terminal_is_gone(started: Started) -> None:
    os.close(started.slave)
    os.close(started.master)
    started.process.send_signal(signal.SIGHUP)
    assert started.process.wait(10) == 128 + signal.SIGHUP
