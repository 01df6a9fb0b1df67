"""The dashboard process: no torch, the terminal is restored, and it ends when the terminal is gone."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

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
sys.exit(run_dashboard(Path(sys.argv[1]), name="alone"))
"""


def test_the_dashboard_does_not_import_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "clean", done.stderr


def start(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The dashboard in a terminal of its own, once it has drawn."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(tmp_path / "nobody")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=env,
    )
    os.close(slave)
    seen = b""
    end = time.monotonic() + 20
    while b"connecting to the run" not in seen:
        assert time.monotonic() < end, seen[-500:]
        if select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
    return process, master


def drained(master: int, process: subprocess.Popen[bytes]) -> bytes:
    seen = b""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
        elif process.poll() is not None:
            break
    return seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_restores_the_terminal(tmp_path: Path, number: signal.Signals) -> None:
    process, master = start(tmp_path)
    try:
        process.send_signal(number)
        seen = drained(master, process)
        assert process.wait(5) == 128 + number
        assert b"\x1b[?1049l" in seen
        assert b"\x1b[?25h" in seen
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_the_process_ends_when_its_terminal_is_gone(tmp_path: Path) -> None:
    process, master = start(tmp_path)
    try:
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
