"""An attended run for tests: a real keeper with its trainer, and viewers that the test controls."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from runs import WITHIN_S, children

from tui_descent.paths import new_run, socket_path
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, VERSION, decode, to_viewer
from tui_descent.protocol.commands import AnyCommand, Hello, Request
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, StepsCompleted, ToViewer, Welcome
from tui_descent.protocol.launch import Launch, start_keeper
from tui_descent.protocol.run_lock import keep_folder
from tui_descent.resume import prepare, recorded
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table

E = TypeVar("E")
Reply = KnobTurned | CommandDone | CommandRejected


class Attended:
    """A run of a preset. It uses the TUI_DESCENT_HOME of the time it is started."""

    def __init__(self, preset: str, *overrides: str, pace: float | None = None, **orders: Any) -> None:
        _, scenario = presets.find(preset, overrides=overrides)
        run, folder = new_run(preset)
        self.path = socket_path(run)
        self.launch = Launch(
            run=run,
            name=preset,
            folder=str(folder),
            socket=str(self.path),
            scenario=to_table(scenario),
            attended=True,
            pace=pace,
            **orders,
        )
        self.launch.write()
        self._viewers: list[Viewer] = []
        self._start()

    def _start(self) -> None:
        self.keeper = start_keeper(self.launch)
        self._ended = os.pidfd_open(self.keeper.pid)

    def _ends_within(self, timeout_s: float) -> bool:
        return bool(select.select([self._ended], [], [], timeout_s)[0])

    @property
    def trainer(self) -> int:
        (pid,) = children(self.keeper.pid)
        return pid

    def connect(self, *, another: bool = False) -> socket.socket:
        """Connect as soon as the keeper listens; with `another`, the keeper that replaces the dead one."""
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.path))
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
            time.sleep(0.01)
            assert another or not self._ends_within(0), (Path(self.launch.folder) / "run.log").read_text()
        raise AssertionError("the keeper never listened")

    def viewer(self, *, hello: bool = True, another: bool = False) -> Viewer:
        viewer = Viewer(self.connect(another=another))
        self._viewers.append(viewer)
        if hello:
            viewer.hello()
        return viewer

    def wait(self, within_s: float = WITHIN_S) -> int:
        """Wait for the keeper to end; returns its exit code."""
        return self.keeper.wait(within_s)

    def resume(self) -> None:
        """Go on with the run, which has ended, as `tui-descent resume` does in a terminal."""
        self.wait()
        keep_folder(self.launch.path)  # a keeper in this process still holds the lock
        self._forget()
        self.launch = prepare(recorded(self.launch.run), attended=True)
        self.path = Path(self.launch.socket or "")
        self._start()

    def _forget(self) -> None:
        os.close(self._ended)

    def close(self) -> None:
        """Stop the run and wait for its keeper to end; kill it if it does not."""
        for viewer in self._viewers:
            viewer.close()
        try:
            self.keeper.terminate()
            self.keeper.wait(40)
        except subprocess.TimeoutExpired:
            for pid in (*children(self.keeper.pid), self.keeper.pid):
                os.kill(pid, 9)
            self.keeper.wait()
            raise
        finally:
            os.close(self._ended)


class Viewer:
    """A client of the keeper. `heard` has all messages it received, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self.peer = Peer(sock, limit=MAX_TO_VIEWER)
        self.heard: list[ToViewer] = []
        self.client = 0
        self._looked = 0
        self._requests = 0

    def hello(self) -> None:
        self.peer.send(Hello(version=VERSION, name="test"))
        self.client = self.until(lambda m: isinstance(m, Welcome)).client  # type: ignore[union-attr]

    def ask(self, command: AnyCommand) -> int:
        """Send a request; returns its number."""
        self._requests += 1
        self.peer.send(Request(request=self._requests, command=command, source="send"))
        return self._requests

    def do(self, command: AnyCommand, within_s: float = WITHIN_S) -> Reply:
        """Send a request and wait for its reply."""
        number = self.ask(command)
        reply = self.until(lambda m: m in self.replies(number), within_s)
        assert isinstance(reply, Reply)
        return reply

    def replies(self, number: int) -> list[Reply]:
        """The replies to this viewer's request with that number."""
        return [m for m in self.heard if isinstance(m, Reply) and (m.client, m.request) == (self.client, number)]

    def until(self, wanted: Callable[[ToViewer], bool], within_s: float = WITHIN_S) -> ToViewer:
        """Wait for a message that is `wanted`; messages that an earlier call looked at do not count."""
        end_s = time.monotonic() + within_s
        while True:
            while self._looked < len(self.heard):
                self._looked += 1
                if wanted(self.heard[self._looked - 1]):
                    return self.heard[self._looked - 1]
            left_s = end_s - time.monotonic()
            last = [m for m in self.heard if not isinstance(m, StepsCompleted)][-3:]
            assert left_s > 0, f"not within {within_s} s; the last heard: {last}"
            assert self.peer.closed is None, f"{self.peer.closed}; the last heard: {last}"
            select.select([self.peer.socket], [], [], left_s)
            self._take()

    def until_event(self, kind: type[E], within_s: float = WITHIN_S, **fields: Any) -> E:
        """Wait for the next event of a kind with these field values."""
        found = self.until(
            lambda m: isinstance(m, kind) and all(getattr(m, name) == value for name, value in fields.items()), within_s
        )
        assert isinstance(found, kind)
        return found

    def until_step(self, step: int, within_s: float = WITHIN_S) -> None:
        """Wait for the report of update `step`."""
        self.until(lambda m: isinstance(m, StepsCompleted) and m.first + len(m.losses) > step, within_s)

    def until_closed(self, within_s: float = WITHIN_S) -> None:
        """Wait until the keeper closes the connection."""
        end_s = time.monotonic() + within_s
        while self.peer.closed is None:
            select.select([self.peer.socket], [], [], max(0.0, end_s - time.monotonic()))
            self._take()
            assert time.monotonic() < end_s

    def events(self, kind: type[E]) -> list[E]:
        return [m for m in self.heard if isinstance(m, kind)]

    def take(self, within_s: float = 0.0) -> None:
        """Take what has arrived, or arrives within this time."""
        select.select([self.peer.socket], [], [], within_s)
        self._take()

    def _take(self) -> None:
        self.peer.flush()
        self.heard += [decode(to_viewer, body) for body in self.peer.receive()]

    def close(self) -> None:
        self.peer.close()


def losses(viewer: Viewer) -> dict[int, float]:
    """The loss of each update that the viewer was sent."""
    return {e.first + n: loss for e in viewer.events(StepsCompleted) for n, loss in enumerate(e.losses)}


def last_reported(viewer: Viewer) -> int:
    """The last update that the viewer was sent, -1 if none."""
    return max(losses(viewer), default=-1)


Start = Callable[..., Attended]
