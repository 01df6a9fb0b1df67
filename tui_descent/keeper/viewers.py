"""The run's viewers: who is attached, what they ask, a bounded queue each. A slow one loses redraws, never our time."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_FROM_VIEWER, VERSION, FrameError, decode, from_viewer
from tui_descent.protocol.commands import Hello, Order, Request
from tui_descent.protocol.events import AnyEvent, HistorySent, Refused, Welcome

MAX_WAITING = 4 * 1024 * 1024
HELLO_WITHIN_S = 5.0
MAX_VIEWERS = 64


class Viewer:
    """One attached client; `behind` while its queue was dropped and a fresh history is owed."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer = peer
        self.number = number
        self.since_s = time.monotonic()
        self.welcomed = False
        self.behind = False


class Viewers:
    """All clients of one run, on one selector. `ask` takes an order on; `history` makes what a newcomer is sent.

    `gone` is told the number of one that has left.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        *,
        run: str,
        history: Callable[[], HistorySent],
        ask: Callable[[Order], None],
        gone: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.seen = 0  # that ever said hello
        self._numbers = 0
        self._listener = listener
        self._selector = selector
        self._run = run
        self._history = history
        self._ask = ask
        self._gone = gone
        self._all: dict[int, Viewer] = {}
        selector.register(listener, selectors.EVENT_READ, self.accept)

    @property
    def attached(self) -> int:
        """Viewers that have said hello."""
        return sum(v.welcomed for v in self._all.values())

    @property
    def waiting(self) -> int:
        """Bytes queued for all of them."""
        return sum(v.peer.waiting for v in self._all.values())

    def accept(self) -> None:
        """Let one more in."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._all) >= MAX_VIEWERS:
            sock.close()
            return
        self._numbers += 1
        viewer = Viewer(Peer(sock, limit=MAX_FROM_VIEWER), self._numbers)
        self._all[viewer.number] = viewer
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._hear(viewer))

    def publish(self, event: AnyEvent) -> None:
        """Send one event to every viewer that keeps up."""
        for viewer in list(self._all.values()):
            if not viewer.welcomed or viewer.behind:
                continue
            viewer.peer.send(event)
            if viewer.peer.waiting > MAX_WAITING:
                viewer.peer.drop_waiting()
                viewer.behind = True

    def tend(self) -> None:
        """Send on what waits, catch up those behind, close those that are gone or never said hello."""
        now_s = time.monotonic()
        for viewer in list(self._all.values()):
            viewer.peer.flush()
            if viewer.behind and not viewer.peer.waiting:
                viewer.behind = False
                viewer.peer.send(self._history())
            if viewer.peer.closed or (not viewer.welcomed and now_s - viewer.since_s > HELLO_WITHIN_S):
                self._drop(viewer)

    def _hear(self, viewer: Viewer) -> None:
        try:
            for body in viewer.peer.receive():
                self._message(viewer, decode(from_viewer, body))
        except FrameError as error:
            self._refuse(viewer, str(error))
        if viewer.peer.closed:
            self._drop(viewer)

    def _message(self, viewer: Viewer, message: Hello | Request) -> None:
        if isinstance(message, Hello):
            if message.version != VERSION:
                raise FrameError(f"this run speaks protocol {VERSION}, the viewer {message.version}")
            if not viewer.welcomed:
                viewer.welcomed = True
                self.seen += 1
                viewer.peer.send(Welcome(version=VERSION, client=viewer.number, run=self._run))
                viewer.peer.send(self._history())
        elif not viewer.welcomed:
            raise FrameError("a request before hello")
        else:
            self._ask(
                Order(
                    client=viewer.number,
                    request=message.request,
                    source=message.source,
                    command=message.command,
                )
            )

    def _refuse(self, viewer: Viewer, reason: str) -> None:
        viewer.peer.send(Refused(reason=reason[:500]))
        self._drop(viewer)

    def _drop(self, viewer: Viewer) -> None:
        if self._all.pop(viewer.number, None) is not None:
            self._selector.unregister(viewer.peer.socket)
            viewer.peer.close()
            self._gone(viewer.number)

    def close(self) -> None:
        """Close them all and the door."""
        for viewer in list(self._all.values()):
            viewer.peer.flush()
            self._drop(viewer)
        self._selector.unregister(self._listener)
        self._listener.close()
