"""The keeper's end of a real link, held by the test: it reads what the loop has written and sends commands."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, decode, from_trainer
from tui_descent.protocol.commands import AnyCommand, ClientRequest
from tui_descent.protocol.events import AnyEvent, ReadingsTaken
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import Ring, StepRecord, ring_file
from tui_descent.training.keeper_link import KeeperLink


class FakeKeeper:
    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._file = ring_file(folder)
        self.link = KeeperLink(theirs, os.dup(self._file), Launch(run="r", name="r", folder=str(folder), socket=None))
        self._peer = Peer(ours, limit=MAX_TO_VIEWER)
        self._ring: Ring | None = None
        self._requests = 0

    @property
    def ring(self) -> Ring:
        if self._ring is None:
            self._ring = Ring.open(self._file)
        return self._ring

    def steps(self) -> list[StepRecord]:
        return self.ring.read_steps()

    def readings(self) -> list[ReadingsTaken]:
        return [unpack(record) for record in self.ring.read_readings()]

    def events(self, kind: type[Any] | None = None) -> list[Any]:
        found: list[AnyEvent] = [decode(from_trainer, body) for body in self._peer.receive()]
        return [event for event in found if kind is None or isinstance(event, kind)]

    def send(self, command: AnyCommand) -> int:
        self._requests += 1
        self._peer.send(ClientRequest(client=1, request=self._requests, source="send", command=command))
        self.ring.raise_flag()
        return self._requests

    def close(self) -> None:
        self._peer.close()
        self.link.close()
        os.close(self._file)
        if self._ring is not None:
            self._ring.close()
