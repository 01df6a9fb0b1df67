"""A client of a live run that imports nothing of the package, so that it can steer any version of it.

A frame is four bytes of length, big-endian, and that much msgpack. All names that the protocol gives to requests are
in COMMANDS and `Client.connect`; events are read by the names that `--json` prints.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

Event = dict[str, Any]
WITHIN_S = 180.0
VERSIONS = range(1, 12)  # of the protocol, tried in this order
COMMANDS = {
    "turn": "turn",
    "pause": "pause",
    "resume": "resume",
    "run": "steps",
    "undo": "undo",
    "redo": "redo",
    "stop": "stop",
}


class ClientError(Exception):
    """The run does not answer as it should."""


class Client:
    """One connection; `heard` is every event since it was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Event] = []
        self.number = 0
        self._requests = 0
        self._looked = 0
        self._bytes = b""
        self._socket = self._connect()

    @classmethod
    def of_run(cls, home: Path) -> Client:
        """A client of the only run under this home, as soon as it listens."""
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            if paths := [path for path in home.rglob("*.sock") if path.is_socket()]:
                return cls(paths[0])
            time.sleep(0.02)
        raise ClientError("the run has no socket")

    def _connect(self) -> socket.socket:
        for version in VERSIONS:
            sock = self._dial()
            sock.settimeout(WITHIN_S)
            self._socket, self._bytes, self.heard, self._looked = sock, b"", [], 0
            self._send({"say": "hello", "version": version, "name": "fingerprint"})
            first = self.until(lambda event: event["event"] in ("welcome", "refused"))
            if first["event"] == "welcome":
                self.number = first["client"]
                return sock
            sock.close()
        raise ClientError(f"the run refuses every version of the protocol: {first}")

    def _dial(self) -> socket.socket:
        end_s = time.monotonic() + WITHIN_S
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.path))
                return sock
            except OSError as error:
                sock.close()
                if time.monotonic() > end_s:
                    raise ClientError(f"{self.path.name}: {error}") from None
                time.sleep(0.02)

    def do(self, command: str, **fields: Any) -> Event:
        """Send a request and wait for its reply."""
        number = self.ask(command, **fields)
        return self.until(lambda event: (event.get("client"), event.get("request")) == (self.number, number))

    def ask(self, command: str, **fields: Any) -> int:
        """Send a request; its number."""
        self._requests += 1
        body = {"do": COMMANDS[command]} | fields
        self._send({"say": "request", "request": self._requests, "command": body, "source": "send"})
        return self._requests

    def passed_on(self) -> None:
        """Wait until what was asked before this has reached the trainer.

        The keeper has one thread, which reads all connections in turn: when it greets one made after the request, it
        has passed the request on.
        """
        Client(self.path).close()

    def run(self, steps: int) -> None:
        """Make so many updates from a pause on, until the next pause or the run's end."""
        reply = self.do("run", steps=steps)
        if reply["event"] == "rejected":
            raise ClientError(f"the run makes no steps: {reply}")
        self.until_state("paused", "waiting", "held")

    def until_state(self, *states: str) -> Event:
        """Wait until the run is in one of these states."""
        return self.until(lambda event: event["event"] == "state" and event["state"] in states)

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """Wait for the first event that is wanted among those not looked at yet."""
        end_s = time.monotonic() + WITHIN_S
        while True:
            while self._looked < len(self.heard):
                self._looked += 1
                if wanted(self.heard[self._looked - 1]):
                    return self.heard[self._looked - 1]
            if time.monotonic() > end_s or not self._receive():
                last = [event for event in self.heard if event["event"] != "steps"][-3:]
                raise ClientError(f"waited in vain; the last events: {str(last)[:600]}")

    def until_closed(self) -> None:
        """Read to the end of the run."""
        while self._receive():
            pass

    def _send(self, message: Any) -> None:
        body = msgspec.msgpack.encode(message)
        self._socket.sendall(struct.pack(">I", len(body)) + body)

    def _receive(self) -> bool:
        with contextlib.suppress(ConnectionError, TimeoutError):
            data = self._socket.recv(1 << 20)
            self._bytes += data
            while len(self._bytes) >= 4 and len(self._bytes) >= 4 + (length := int.from_bytes(self._bytes[:4], "big")):
                self.heard.append(msgspec.msgpack.decode(self._bytes[4 : 4 + length]))
                self._bytes = self._bytes[4 + length :]
            return bool(data)
        return False

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
