"""The trainer's line to its keeper: events and orders over a socket, steps and readings through shared memory.

Nothing here blocks the training loop: what the socket does not take waits in a bounded queue.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
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
    Launch,
    open_connection,
    start_keeper,
    undo_budget,
)
from tui_descent.protocol.readings import COLUMNS
from tui_descent.protocol.ring import Ring

MAX_WAITING = 8 << 20
BEAT_S = 0.5


class KeeperLink:
    """One run's line; `file` is the ring's. `lost` once the keeper is gone."""

    def __init__(
        self, sock: socket.socket, file: int, launch: Launch, keeper: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.launch = launch
        self._file = file
        self.ring: Ring | None = None
        self._peer = Peer(sock, limit=MAX_TO_VIEWER)
        self._keeper = keeper

    @classmethod
    def inherited(cls) -> KeeperLink | None:
        """The line of the keeper that started this process; None if there is none or it is already taken."""
        folder = os.environ.get(ENV_FOLDER)
        # A script may have closed them on its way here, or put other files in their place.
        line, file = (find_fd(os.environ.get(name, "")) for name in (ENV_LINK, ENV_RING))
        if not folder or line is None or file is None:
            return None
        try:
            os.close(os.open(Path(folder) / CONNECTED_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return cls(socket.socket(fileno=line), file, Launch.read(Path(folder)))
        except OSError:
            return None

    @classmethod
    def to_own_keeper(cls, name: str) -> KeeperLink:
        """Start a keeper for this loop. Raises `ChannelError` or `OSError` when the run cannot be served."""
        budget = undo_budget(None)
        run, folder = paths.new_run(name)
        launch = Launch(run=run, name=name, folder=str(folder), socket=str(paths.socket_path(run)), undo_budget=budget)
        launch.write()
        with open_connection(launch) as (ours, theirs, file):
            keeper = start_keeper(launch, trainer=(theirs, file))
        return cls(ours, file, launch, keeper)

    @property
    def lost(self) -> bool:
        """Whether the keeper is gone."""
        return self._peer.closed is not None

    def make_ring(self, layers: int) -> Ring:
        """Lay out the shared memory, with room for readings of so many layers.

        Raises `OSError` when there is no room for it.
        """
        self.ring = Ring.create(self._file, layers=layers, columns=len(COLUMNS))
        self.ring.beat(time.monotonic())
        return self.ring

    def emit(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event, with `more` behind it together with the next one.

        While the keeper does not read, events beyond the bound are dropped rather than waited for; but never which
        layers there are, since no reading after it could be told from others.
        """
        if self._peer.waiting < MAX_WAITING or isinstance(event, LayersChanged):
            (self._peer.queue if more else self._peer.send)(event)

    def orders(self) -> list[ClientRequest]:
        """The commands at hand."""
        if self.ring is not None:
            self.ring.lower_flag()
        self._peer.flush()
        try:
            return [decode(to_trainer, body) for body in self._peer.receive()]
        except FrameError as error:
            self._peer.closed = str(error)
            return []

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a command comes, the time is over or a heartbeat is due, whichever is first."""
        if self.ring is not None:
            self.ring.beat(time.monotonic())
        sleep_s = BEAT_S if timeout_s is None else min(BEAT_S, timeout_s)
        if self.lost:
            time.sleep(sleep_s)
        else:
            select.select([self._peer.socket], [], [], sleep_s)

    def close(self) -> None:
        """Send what is left, within bounds, and hang up; the keeper reads the ring to its end."""
        end_s = time.monotonic() + 2.0
        while self._peer.waiting and not self.lost and time.monotonic() < end_s:
            select.select([], [self._peer.socket], [], 0.1)
            self._peer.flush()
        self._peer.close()
        if self.ring is not None:
            self.ring.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(5.0)
