"""A keeper without a trainer in the test's event loop, and what a panel draws of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from factories import history_of, turned

from tui_descent.dashboard.bridge import UNASKED
from tui_descent.dashboard.view import View
from tui_descent.protocol import codec
from tui_descent.protocol.commands import (
    AnyCommand,
    Evaluate,
    Hello,
    Mark,
    Pause,
    Request,
    ResizeTerminal,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
    WatchCurvature,
    WatchTask,
)
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Evaluated,
    Heartbeat,
    Marked,
    Noted,
    RunEnded,
    StateChanged,
    ToViewer,
    Welcome,
)
from tui_descent.telemetry.history import History

CLIENT = 7


class FakeKeeper:
    """`publish` sends events, `received` holds the commands. With `replies` it answers as a trainer would.

    With `heartbeat` it says that it sends something every second, so that it can be silent.
    """

    def __init__(
        self, socket: Path, *, before: Iterable[AnyEvent] = (), replies: bool = True, heartbeat: bool = False
    ) -> None:
        self.socket = socket
        self.history = History()
        self.replies, self.heartbeat = replies, heartbeat
        self.reject: str | None = None
        self.received: list[AnyCommand] = []
        self.read_only: list[bool] = []  # what each viewer has said in its Hello
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        for event in before:
            self.history.apply(event)

    async def __aenter__(self) -> FakeKeeper:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, as a killed keeper would."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    def publish(self, *events: AnyEvent) -> None:
        """Send events to the viewers."""
        for event in events:
            self.history.apply(event)
            for writer in self._writers:
                writer.write(codec.frame(event))

    def beat(self) -> None:
        """Send a heartbeat."""
        for writer in self._writers:
            writer.write(codec.frame(Heartbeat()))

    @property
    def has_viewer(self) -> bool:
        """Whether a viewer has connected."""
        return bool(self._writers)

    @property
    def steered(self) -> list[AnyCommand]:
        """The commands that somebody has given; without those that the dashboard sends by itself."""
        return [command for command in self.received if not isinstance(command, UNASKED)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = codec.FrameReader(codec.MAX_FROM_VIEWER)
        try:
            while data := await reader.read(65536):
                for body in frames.feed(data):
                    message = codec.decode(codec.from_viewer, body)
                    if isinstance(message, Hello):
                        self.read_only.append(message.read_only)
                        self._greet(writer)
                    elif isinstance(message, Request):
                        self._answer(message)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _greet(self, writer: asyncio.StreamWriter) -> None:
        welcome = Welcome(version=codec.VERSION, client=CLIENT, run="r1", heartbeat=self.heartbeat)
        greeting: list[ToViewer] = [welcome, self.history.send()]
        for message in greeting:
            writer.write(codec.frame(message))
        self._writers.append(writer)

    def _answer(self, request: Request) -> None:
        command = request.command
        self.received.append(command)
        if not self.replies:
            return
        step, number = self.history.steps, request.request
        if self.reject is not None:
            knob = command.knob if isinstance(command, TurnKnob) else ""
            self.publish(
                CommandRejected(
                    client=CLIENT, request=number, source="key", segment=0, step=step, knob=knob, reason=self.reject
                )
            )
            return
        match command:
            case TurnKnob():
                old = self.history.knobs.get(command.knob, "")
                self.publish(turned(step, old, command.value, knob=command.knob, request=number, client=CLIENT))
                return
            case Pause():
                self.publish(StateChanged(state="paused"))
            case Resume():
                self.publish(StateChanged(state="running"))
            case Mark():
                self.publish(Marked(segment=0, step=step, text=command.text))
            case Evaluate():
                self.publish(Evaluated(segment=0, step=step, loss=2.3, accuracy=0.1))
            case RunSteps():
                self.publish(Noted(step=step, text=f"{command.steps} steps"))
            case WatchCurvature() | WatchTask() | ResizeTerminal():
                pass
            case Stop():
                self.publish(
                    StateChanged(state="stopping"), RunEnded(status="stopped", step=step, loss=2.3, accuracy=0.1)
                )
        self.publish(
            CommandDone(client=CLIENT, request=number, segment=0, step=step, what=type(command).__name__.lower())
        )


def view(events: list[AnyEvent], **look: object) -> View:
    return View(history=history_of(events), **look)  # type: ignore[arg-type]
