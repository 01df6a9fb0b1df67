"""A keeper with a scripted trainer: a real socket, a real ring, no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from threading import Condition, Event, Thread

from factories import started

from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.paths import new_run, socket_path
from tui_descent.protocol import codec
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.events import (
    AnyEvent,
    Layer,
    LayersChanged,
    RunEnded,
    StateChanged,
    StepsCompleted,
)
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.readings import COLUMNS, pack_row
from tui_descent.protocol.ring import Ring, ring_file

WITHIN_S = 30.0


class ScriptedTrainer:
    """The trainer's end of socket and ring, with the keeper. `run` closes what the test leaves open."""

    def __init__(self, *, attended: bool = False, ring_steps: int = 1 << 12, script: bool = False) -> None:
        run, folder = new_run("scripted")
        self.launch = Launch(
            run=run,
            name="scripted",
            folder=str(folder),
            socket=str(socket_path(run)) if attended else None,
            attended=attended,
            command=("python", "train.py") if script else None,
        )
        self.launch.write()
        ours, self._theirs = socket.socketpair()
        self.peer = Peer(ours, limit=codec.MAX_TO_VIEWER)
        self.layers = tuple(Layer(name=f"blocks.{n}", kind="Linear", params=3, block=n) for n in range(2))
        self.structure = 0
        self._file = ring_file(folder)
        self.ring = Ring.create(self._file, layers=4, columns=len(COLUMNS), steps=ring_steps)
        self.ring.beat(time.monotonic())
        self.step = 0
        self.events: list[AnyEvent] = []
        self.listening = Event()
        self._published = Condition()
        self.keeper = Keeper(self.launch, on_event=self._receive)

    def _receive(self, event: AnyEvent) -> None:
        with self._published:
            self.events.append(event)
            self._published.notify_all()
        self.listening.set()  # the first event comes when the socket is there

    def until(self, wanted: Callable[[AnyEvent], bool]) -> None:
        """Wait until the keeper has published an event that is `wanted`."""
        with self._published:
            assert self._published.wait_for(lambda: any(map(wanted, self.events)), WITHIN_S), self.events

    def start(self) -> None:
        self.peer.send(started(run=self.launch.run, name="scripted", scenario=None, layers=self.layers, knobs=()))
        self.peer.send(StateChanged(state="running"))

    def steps(self, count: int, *, reading_every: int = 0) -> None:
        for step in range(self.step, self.step + count):
            self.ring.write_step(step, step * 0.5, 0.1, step * 1e-3, 0, False)
            if reading_every and step % reading_every == 0:
                rows = [pack_row([float(step)] * len(COLUMNS))] * len(self.layers)
                self.ring.write_reading(step, 0, 1.0, 0.0, rows, structure=self.structure)
        self.step += count

    def change_layers(self) -> None:
        """Add norms, or remove them again."""
        plain, self.structure = self.layers[:2], self.structure + 1
        norms = tuple(Layer(name=f"blocks.{n}.norm", kind="LayerNorm", params=2, block=n) for n in range(2))
        self.layers = plain if len(self.layers) > 2 else (*plain, *norms)
        self.peer.send(
            LayersChanged(segment=0, step=self.step, structure=self.structure, parameters=6, layers=self.layers)
        )

    def ended(self, *, hang_up: bool = True) -> None:
        self.peer.send(RunEnded(status="finished", step=self.step, loss=0.5))
        if hang_up:
            self.peer.close()

    def run(self, first: Callable[[], None] = lambda: None) -> RunEnded:
        """Run the keeper; `first` is called when it starts the trainer."""

        def start() -> Trainer:
            first()
            return Trainer.adopt(self._theirs, self._file, parent=os.getppid())

        try:
            return self.keeper.run(start)
        finally:
            self.peer.close()
            self.ring.close()

    def run_while(self, play: Callable[[], None], first: Callable[[], None] = lambda: None) -> RunEnded:
        """Run the keeper while `play` acts as the trainer in a thread; the trainer exits when `play` returns."""

        def whole() -> None:
            try:
                play()
            finally:
                self.peer.close()

        thread = Thread(target=whole)
        thread.start()
        try:
            return self.run(first)
        finally:
            thread.join(30)
            assert not thread.is_alive()

    def published_steps(self) -> list[int]:
        return [
            s for e in self.events if isinstance(e, StepsCompleted) for s in range(e.first, e.first + len(e.losses))
        ]
