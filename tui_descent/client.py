"""A connection to a run's keeper for the command line: it sends commands and waits for their replies."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, VERSION, FrameError, decode, to_viewer
from tui_descent.protocol.commands import AnyCommand, Hello, Request
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    Heartbeat,
    HistorySent,
    Joined,
    KnobTurned,
    Refused,
    ToViewer,
    Welcome,
)
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.run_lock import is_held
from tui_descent.telemetry.history import History

Reply = KnobTurned | CommandDone | CommandRejected
CONNECT_WITHIN_S = 10.0
RETRY_S = 0.05
SILENT_AFTER_S = 10.0  # the keeper sends something every second


class ClientError(Exception):
    """The keeper cannot be reached. The text says why."""


class Client:
    """One client of a run. `history` follows the run."""

    def __init__(self, peer: Peer) -> None:
        self.history = History()
        self._peer = peer
        self._number = 0
        self._requests = 0
        self._heard_s = time.monotonic()

    def request(self, command: AnyCommand) -> Reply:
        """Send a command and wait for its reply. Raises `ClientError`."""
        number = self.send(command)
        replies: list[Reply] = []

        def is_reply(message: ToViewer) -> bool:
            if (reply := self.reply_in(message, number)) is not None:
                replies.append(reply)
            return bool(replies)

        self.wait(is_reply)
        return replies[0]

    def send(self, command: AnyCommand) -> int:
        """Send a command; returns the number of the request."""
        self._requests += 1
        self._peer.send(Request(request=self._requests, command=command, source="send"))
        return self._requests

    def reply_in(self, message: ToViewer, number: int) -> Reply | None:
        """The message, if it is the reply to this request."""
        ours = isinstance(message, Reply) and (message.client, message.request) == (self._number, number)
        return message if ours and isinstance(message, Reply) else None

    def wait(self, wanted: Callable[[ToViewer], bool], tick: Callable[[], None] = lambda: None) -> None:
        """Wait for a message that is `wanted`; call `tick` now and then. Raises `ClientError`."""
        while True:
            for message in self._receive():
                if wanted(message):
                    return
            tick()
            if self._peer.closed is not None:
                raise ClientError("the run's keeper has ended")
            if time.monotonic() > self._heard_s + SILENT_AFTER_S:
                raise ClientError("the run's keeper does not respond (suspended?)")
            self._peer.flush()
            select.select([self._peer.socket], [self._peer.socket] if self._peer.waiting else [], [], 0.2)

    def _receive(self) -> list[ToViewer]:
        try:
            messages = [decode(to_viewer, body) for body in self._peer.receive()]
        except FrameError as error:
            raise ClientError(str(error)) from None
        for message in messages:
            self._heard_s = time.monotonic()
            match message:
                case Heartbeat() | Joined():
                    pass
                case Welcome():
                    self._number = message.client
                case Refused():
                    raise ClientError(message.reason)
                case HistorySent():
                    self.history = History.receive(message)
                case _:
                    self.history.apply(message)
        return messages


@contextmanager
def connected(launch: Launch, name: str) -> Iterator[Client]:
    """A client of a live run. A keeper that is being replaced is waited for. Raises `ClientError`."""
    peer = Peer(_connect(launch), limit=MAX_TO_VIEWER)
    try:
        client = Client(peer)
        peer.send(Hello(version=VERSION, name=name))
        client.wait(lambda message: isinstance(message, HistorySent))
        yield client
    finally:
        peer.close()


def _connect(launch: Launch) -> socket.socket:
    end_s = time.monotonic() + CONNECT_WITHIN_S
    while launch.socket is not None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(launch.socket)
            return sock
        except OSError as error:
            sock.close()
            if not is_held(launch.path):
                raise ClientError("the run has ended") from None
            if time.monotonic() > end_s:
                raise ClientError(f"no keeper responds at {launch.socket}: {error.strerror}") from None
        time.sleep(RETRY_S)
    raise ClientError("the run has no socket")
