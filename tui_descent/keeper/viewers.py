"""The run's viewers, each with a bounded queue of events.

A slow viewer loses events and does not slow the keeper down.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_FROM_VIEWER, VERSION, FrameError, decode, from_viewer
from tui_descent.protocol.commands import HARMLESS, ClientRequest, Hello, Join, Request
from tui_descent.protocol.events import AnyEvent, Heartbeat, HistorySent, Refused, Welcome

MAX_WAITING = 4 * 1024 * 1024
HELLO_WITHIN_S = 5.0
MAX_VIEWERS = 64
MAX_WITHOUT_HELLO = 64  # connections that have not said what they are; they are closed after HELLO_WITHIN_S
HEARTBEAT_S = 1.0
ACCEPT_AGAIN_S = 1.0  # if the process has no descriptor left, it accepts no connection for this long


class Viewer:
    """One client. `overflowed`: its queue was dropped, so it is sent a new history as soon as it reads again."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer = peer
        self.number = number
        self.since_s = time.monotonic()
        self.welcomed = False
        self.read_only = False
        self.overflowed = False


def _refuse_to_join(_: socket.socket) -> None:
    raise FrameError("this run has no script")


class Viewers:
    """All clients of one run; they share one selector.

    A new client is sent what `history` returns. `on_request` is called with each request, `on_refused` with a request
    that a read-only client may not make, `on_leave` with the number of a client that has left, `on_join` with the
    connection of a process that wants to be the trainer; it raises `FrameError` to refuse. `numbers` is the highest
    number that an earlier keeper of the run has given to a client.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        *,
        run: str,
        history: Callable[[], HistorySent],
        on_request: Callable[[ClientRequest], None],
        on_refused: Callable[[ClientRequest], None] = lambda request: None,
        on_leave: Callable[[int], None] = lambda number: None,
        on_join: Callable[[socket.socket], None] = _refuse_to_join,
        numbers: int = 0,
    ) -> None:
        self.seen = 0  # how many clients have ever sent Hello
        self.numbers = numbers  # the highest number of a client so far
        self._listener = listener
        self._selector = selector
        self._run = run
        self._history = history
        self._on_request, self._on_refused = on_request, on_refused
        self._on_leave, self._on_join = on_leave, on_join
        self._all: dict[int, Viewer] = {}
        self._accept_again_s: float | None = None
        self._heartbeat_s = time.monotonic()
        selector.register(listener, selectors.EVENT_READ, self.accept)

    @property
    def attached(self) -> int:
        """How many viewers are attached, that is, have sent Hello."""
        return sum(v.welcomed for v in self._all.values())

    @property
    def waiting(self) -> int:
        """How many bytes are queued for all clients together."""
        return sum(v.peer.waiting for v in self._all.values())

    def accept(self) -> None:
        """Accept a connection. It counts as a viewer once it has sent Hello."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # the client has gone again
        except OSError:
            # Out of descriptors: the connection stays in the listener's queue, so the selector would not wait any more.
            self._selector.unregister(self._listener)
            self._accept_again_s = time.monotonic() + ACCEPT_AGAIN_S
            return
        if len(self._all) - self.attached >= MAX_WITHOUT_HELLO:
            sock.close()
            return
        self.numbers += 1
        viewer = Viewer(Peer(sock, limit=MAX_FROM_VIEWER), self.numbers)
        self._all[viewer.number] = viewer
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._receive(viewer))

    def publish(self, event: AnyEvent) -> None:
        """Send one event to every viewer whose queue has not overflowed."""
        for viewer in list(self._all.values()):
            if not viewer.welcomed or viewer.overflowed:
                continue
            viewer.peer.send(event)
            if viewer.peer.waiting > MAX_WAITING:
                viewer.peer.drop_waiting()
                viewer.overflowed = True

    def maintain(self) -> None:
        """Flush the queues, send a new history after an overflow, drop clients that are gone or have not sent Hello.

        Send a heartbeat when one is due.
        """
        now_s = time.monotonic()
        if heartbeat := now_s - self._heartbeat_s >= HEARTBEAT_S:
            self._heartbeat_s = now_s
        if self._accept_again_s is not None and now_s >= self._accept_again_s:
            self._accept_again_s = None
            self._selector.register(self._listener, selectors.EVENT_READ, self.accept)
        for viewer in list(self._all.values()):
            viewer.peer.flush()
            if viewer.overflowed and not viewer.peer.waiting:
                viewer.overflowed = False
                viewer.peer.send(self._history())
            if heartbeat and viewer.welcomed and not viewer.peer.waiting:
                viewer.peer.send(Heartbeat())
            if viewer.peer.closed or (not viewer.welcomed and now_s - viewer.since_s > HELLO_WITHIN_S):
                self._drop(viewer)

    def _receive(self, viewer: Viewer) -> None:
        try:
            for body in viewer.peer.receive():
                self._handle(viewer, decode(from_viewer, body))
        except FrameError as error:
            self._refuse(viewer, str(error))
        if viewer.peer.closed:
            self._drop(viewer)

    def _handle(self, viewer: Viewer, message: Hello | Request | Join) -> None:
        if isinstance(message, Hello | Join) and message.version != VERSION:
            raise FrameError(f"this run uses protocol {VERSION}, the viewer uses protocol {message.version}")
        if isinstance(message, Join):
            if viewer.welcomed:
                raise FrameError("a viewer cannot be the trainer")
            self._on_join(viewer.peer.socket)
            self._drop(viewer)
        elif isinstance(message, Hello):
            if not viewer.welcomed and self.attached >= MAX_VIEWERS:
                raise FrameError(f"full: {MAX_VIEWERS} viewers are attached already; close one of them first")
            if not viewer.welcomed:
                viewer.welcomed, viewer.read_only = True, message.read_only
                self.seen += 1
                viewer.peer.send(Welcome(version=VERSION, client=viewer.number, run=self._run, heartbeat=True))
                viewer.peer.send(self._history())
        elif not viewer.welcomed:
            raise FrameError("a request was sent before Hello")
        else:
            request = ClientRequest(
                client=viewer.number, request=message.request, source=message.source, command=message.command
            )
            is_refused = viewer.read_only and not isinstance(message.command, HARMLESS)
            (self._on_refused if is_refused else self._on_request)(request)

    def _refuse(self, viewer: Viewer, reason: str) -> None:
        viewer.peer.send(Refused(reason=reason[:500]))
        self._drop(viewer)

    def _drop(self, viewer: Viewer) -> None:
        if self._all.pop(viewer.number, None) is not None:
            self._selector.unregister(viewer.peer.socket)
            viewer.peer.close()
            self._on_leave(viewer.number)

    def listen_on(self, listener: socket.socket) -> None:
        """Accept connections at another socket from now on."""
        self._close_listener()
        self._listener, self._accept_again_s = listener, None
        self._selector.register(listener, selectors.EVENT_READ, self.accept)

    def close(self) -> None:
        """Close all connections and the listener."""
        for viewer in list(self._all.values()):
            viewer.peer.flush()
            self._drop(viewer)
        self._close_listener()

    def _close_listener(self) -> None:
        if self._accept_again_s is None:
            self._selector.unregister(self._listener)
        self._listener.close()
