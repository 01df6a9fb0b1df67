"""A viewer of a run whose trainer is scripted."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from runs import WITHIN_S
from scripted_trainer import ScriptedTrainer

from tui_descent.protocol import codec
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.commands import AnyCommand, Hello, Request
from tui_descent.protocol.events import ToViewer


class Viewer:
    """A client of a scripted trainer's keeper."""

    def __init__(self, trainer: ScriptedTrainer, *, read_only: bool = False) -> None:
        assert trainer.listening.wait(WITHIN_S)
        assert trainer.launch.socket is not None
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(trainer.launch.socket)
        self.peer = Peer(sock, limit=codec.MAX_TO_VIEWER)
        self.peer.send(Hello(version=codec.VERSION, read_only=read_only))
        self._heard: list[ToViewer] = []
        self._requests = 0

    def ask(self, command: AnyCommand) -> None:
        self._requests += 1
        self.peer.send(Request(request=self._requests, command=command))

    def until(self, wanted: Callable[[ToViewer], bool]) -> ToViewer:
        while True:
            while self._heard:
                if wanted(message := self._heard.pop(0)):
                    return message
            assert self.peer.closed is None, self.peer.closed
            assert select.select([self.peer.socket], [], [], WITHIN_S)[0]
            self._heard += [codec.decode(codec.to_viewer, body) for body in self.peer.receive()]
