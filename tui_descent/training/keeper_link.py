"""The trainer's connection to its keeper: events and commands over a socket, steps and readings in shared memory.

Sending never blocks the training loop: what the socket does not accept waits in a bounded queue.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from tui_descent import paths
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, FrameError, decode, to_trainer
from tui_descent.protocol.commands import ClientRequest
from tui_descent.protocol.events import AnyEvent, LayersChanged
from tui_descent.protocol.inherited_fds import find_fd
from tui_descent.protocol.launch import (
    CONNECTED_FILE,
    ENV_FOLDER,
    ENV_LINK,
    ENV_RING,
    LAUNCHED,
    LAUNCHED_FILE,
    Launch,
    open_connection,
    start_keeper,
    undo_budget,
)
from tui_descent.protocol.readings import COLUMNS
from tui_descent.protocol.ring import Ring

MAX_QUEUED_BYTES = 8 << 20
HEARTBEAT_S = 0.5


class KeeperLink:
    """The connection of one run. `ring_fd` is the descriptor of the shared memory."""

    def __init__(
        self, sock: socket.socket, ring_fd: int, launch: Launch, keeper: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.launch = launch
        self._ring_fd = ring_fd
        self.ring: Ring | None = None
        self._peer = Peer(sock, limit=MAX_TO_VIEWER)
        self._keeper = keeper

    @classmethod
    def inherited(cls) -> KeeperLink | None:
        """The connection to the keeper that started this process.

        None if no keeper started it, or if the connection is already in use.
        """
        folder = os.environ.get(ENV_FOLDER)
        # A script that started this process may have closed the descriptors or reused their numbers.
        link_fd, ring_fd = (find_fd(os.environ.get(name, "")) for name in (ENV_LINK, ENV_RING))
        if not folder or link_fd is None or ring_fd is None:
            return None
        try:
            os.close(os.open(Path(folder) / CONNECTED_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return cls(socket.socket(fileno=link_fd), ring_fd, Launch.read(Path(folder)))
        except OSError:
            return None

    @classmethod
    def with_own_keeper(cls, name: str) -> KeeperLink:
        """Start a keeper for this process. Raises `ChannelError` or `OSError` if that fails."""
        budget = undo_budget(None)
        run, folder = paths.new_run(name)
        launch = Launch(run=run, name=name, folder=str(folder), socket=str(paths.socket_path(run)), undo_budget=budget)
        launch.write()
        with open_connection(launch) as (ours, theirs, ring_fd):
            keeper = start_keeper(launch, trainer=(theirs, ring_fd))
        return cls(ours, ring_fd, launch, keeper)

    @property
    def lost(self) -> bool:
        """Whether the connection to the keeper is lost."""
        return self._peer.closed is not None

    def make_ring(self, layers: int) -> Ring:
        """Create the shared memory, with room for readings of `layers` layers.

        Raises `OSError` if there is not enough memory.
        """
        self.ring = Ring.create(self._ring_fd, layers=layers, columns=len(COLUMNS))
        self.ring.beat(time.monotonic())
        return self.ring

    def emit(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event; with `more`, queue it and send it together with the next one.

        Once the queue is full, events are dropped. `LayersChanged` is never dropped: without it, the rows of later
        readings would be assigned to the wrong layers.
        """
        if self._peer.waiting < MAX_QUEUED_BYTES or isinstance(event, LayersChanged):
            (self._peer.queue if more else self._peer.send)(event)

    def commands(self) -> list[ClientRequest]:
        """The commands that have arrived since the last call."""
        if self.ring is not None:
            self.ring.lower_flag()
        self._peer.flush()
        try:
            return [decode(to_trainer, body) for body in self._peer.receive()]
        except FrameError as error:
            self._peer.closed = str(error)
            return []

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a command arrives, the timeout expires or a heartbeat is due, whichever comes first."""
        if self.ring is not None:
            self.ring.beat(time.monotonic())
        sleep_s = HEARTBEAT_S if timeout_s is None else min(HEARTBEAT_S, timeout_s)
        if self.lost:
            time.sleep(sleep_s)
        else:
            select.select([self._peer.socket], [], [], sleep_s)

    def close(self) -> None:
        """Send what is queued, for at most two seconds, and close. The keeper still reads the rest of the ring."""
        end_s = time.monotonic() + 2.0
        while self._peer.waiting and not self.lost and time.monotonic() < end_s:
            select.select([], [self._peer.socket], [], 0.1)
            self._peer.flush()
        self._peer.close()
        if self.ring is not None:
            self.ring.close()
        if self._ring_fd >= 0:
            os.close(self._ring_fd)
            self._ring_fd = -1
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(5.0)


def is_launched_under_exec() -> bool:
    """Whether `exec` has started a launcher that started this process, without passing on the connection.

    The run's keeper is told by a file in the run's folder, and the user by a message. The loop trains unwatched.
    """
    folder = os.environ.get(ENV_FOLDER)
    if not folder or not Path(folder).is_dir() or find_fd(os.environ.get(ENV_LINK, "")) is not None:
        return False
    with contextlib.suppress(OSError):  # only the first of several processes says it
        os.close(os.open(Path(folder) / LAUNCHED_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        print(f"tui-descent: training continues unwatched: {LAUNCHED}", file=sys.stderr)
    return True
