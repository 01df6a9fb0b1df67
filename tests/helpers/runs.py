"""Run the real command in tests: to its end, several at a time, or live with its JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tui_descent.protocol.run_lock import is_held
from tui_descent.telemetry.record import Record

TUI = (sys.executable, "-m", "tui_descent")
ENTRY_POINT = Path(sys.executable).with_name("tui-descent")
_SIGNALLED = """
import os, runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {where!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Generous enough for a loaded two-core machine that imports torch in three processes at once.
WITHIN_S = 120.0
Line = dict[str, Any]
_AT_START = {name: value for name, value in os.environ.items() if not name.startswith("TUI_DESCENT_")}


@dataclass(frozen=True)
class Outcome:
    """The result of a finished command."""

    args: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    took_s: float

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def events(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == kind]

    @property
    def losses(self) -> list[float]:
        steps = self.events("step")
        assert [line["step"] for line in steps] == list(range(len(steps)))
        return [line["loss"] for line in steps]

    @property
    def ended(self) -> Line:
        last = self.lines[-1]
        assert last["event"] == "run_ended"
        return last


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A home folder shared by several tests. At the end no process may be left that uses it."""
    folder = Path(tempfile.mkdtemp(prefix="td"))
    try:
        yield folder
        stop_keepers(folder)
        assert left_behind(folder) == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recorded(home: Path) -> list[tuple[str, int]]:
    """The status and the number of steps in the record of each run whose folder is there."""
    found = []
    for folder in sorted((home / "runs").iterdir()):
        with Record.open(folder) as record:
            found.append((record.about.status, record.about.step))
    return found


def signalled(number: signal.Signals, where: str) -> list[str]:
    """The command, which sends itself a signal when it imports the module `where`."""
    return [sys.executable, "-c", _SIGNALLED.format(where=where, number=int(number)), str(ENTRY_POINT)]


def environment(home: Path | None = None) -> dict[str, str]:
    """The test's environment, or a fixed one with another home that is safe to use from other threads."""
    return dict(os.environ) if home is None else _AT_START | {"TUI_DESCENT_HOME": str(home)}


def run(*args: str, home: Path | None = None, within_s: float = WITHIN_S, command: Sequence[str] = TUI) -> Outcome:
    """Run the command to its end, without a terminal."""
    begun = time.monotonic()
    done = subprocess.run(
        [*command, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(home),
        timeout=within_s,
        check=False,
    )
    return Outcome(args, done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


def together(*commands: Sequence[str], home: Path) -> list[Outcome]:
    """Several runs, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda args: run(*args, home=home, within_s=5 * WITHIN_S), commands))


class Live:
    """A running command whose JSON lines are read as they are printed."""

    def __init__(self, *args: str, home: Path | None = None) -> None:
        self.lines: list[Line] = []
        self._coming: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*TUI, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home),
            start_new_session=True,
        )
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        self.stderr = ""
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(line)
        self._coming.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()

    def until(self, wanted: Callable[[Line], bool], within_s: float = WITHIN_S) -> Line:
        """Wait for the next line that is `wanted`."""
        end_s = time.monotonic() + within_s
        while True:
            line = self._coming.get(timeout=max(0.0, end_s - time.monotonic()))
            assert line is not None, f"ended without it; its last line: {self.lines[-1:]}"
            self.lines.append(json.loads(line))
            if wanted(self.lines[-1]):
                return self.lines[-1]

    def end(self, within_s: float = WITHIN_S) -> tuple[int, Line]:
        """Wait for its end; returns exit code and last line."""
        code = self.process.wait(within_s)
        for reader in self._readers:
            reader.join(within_s)
        while (line := self._coming.get(timeout=within_s)) is not None:
            self.lines.append(json.loads(line))
        return code, self.lines[-1]

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(WITHIN_S)
        for reader in self._readers:
            reader.join(WITHIN_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def stop_keepers(home: Path) -> None:
    """End all runs of this home folder properly, and wait for their ends."""
    for line in left_behind(home):
        if "tui_descent.keeper.process" in line:
            pid = int(line.split()[0])
            with contextlib.suppress(ProcessLookupError):
                ended = os.pidfd_open(pid)
                os.kill(pid, signal.SIGTERM)
                select.select([ended], [], [], WITHIN_S)
                os.close(ended)


def wait_until_free(folder: Path) -> None:
    """Wait until no process works for a run any more, such as the keeper that records its end."""
    end_s = time.monotonic() + WITHIN_S
    while is_held(folder):
        assert time.monotonic() < end_s
        time.sleep(0.02)


def left_behind(home: Path) -> list[str]:
    """The command lines of processes that still use this home folder."""
    table = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True)
    return [line for line in table.stdout.splitlines() if str(home) in line and " Z" not in line]


def wait_for_end(pid: int) -> None:
    """Wait until a process that need not be our child has ended."""
    watched = os.pidfd_open(pid)
    assert select.select([watched], [], [], WITHIN_S)[0]
    os.close(watched)


def kill_and_wait(pid: int) -> None:
    """Kill a process and wait for its end: until then it keeps its locks."""
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([watched], [], [], WITHIN_S)[0]
    os.close(watched)
