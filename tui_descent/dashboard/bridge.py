"""The one reader of the channel: frames in, one `History` kept up to date; requests out, each with the reply it got.

A lost connection is data that the screen shows, never an exception.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tui_descent.protocol import codec
from tui_descent.protocol.commands import AnyCommand, Hello, Request, Source, TurnKnob, WatchCurvature
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    HistorySent,
    KnobTurned,
    Refused,
    RunStarted,
    ToViewer,
    Welcome,
)
from tui_descent.scenario import knobs
from tui_descent.telemetry.history import History

Reply = KnobTurned | CommandDone | CommandRejected
NOBODY = "there is no keeper to ask"
CONNECT_S = 10.0
RETRY_S = 0.05
# Turns that come to the same as one are gathered until none came for a moment, and for no longer than a frame.
QUIET_S = 0.025
GATHER_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The last thing that was asked or done: a request, its reply once there is one, or a refusal without asking."""

    asked: AnyCommand | None = None
    reply: Reply | None = None
    refused: str = ""


class Bridge:
    """`revision` grows with every change that a viewer could see; the frame timer compares it, nothing else draws."""

    def __init__(self, socket: Path, *, name: str = "viewer") -> None:
        self.socket = socket
        self.name = name
        self.history = History()
        self.connected = False
        self.trouble = ""
        self.exchange = Exchange()
        self.client: int | None = None
        self._changes = 0
        self._requests = 0
        self._open: dict[int, AnyCommand] = {}
        self._gathered: Request | None = None
        self._gather_until_s = 0.0
        self._sending: asyncio.TimerHandle | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def revision(self) -> tuple[int, int, int]:
        """Changes with the history, its replacement, and everything else here."""
        return id(self.history), self.history.revision, self._changes

    async def run(self) -> None:
        """Connect and read until the keeper closes."""
        try:
            reader, self._writer = await self._connect()
        except OSError as error:
            self._lose(f"no keeper at {self.socket.name}: {error.strerror or error}")
            return
        try:
            await self._read(reader, self._writer)
            self._lose("the keeper closed the connection")
        except (OSError, codec.FrameError) as error:
            self._lose(str(error))
        finally:
            self.send_gathered()
            self._writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        end = asyncio.get_running_loop().time() + CONNECT_S
        while True:
            try:
                return await asyncio.open_unix_connection(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                # The keeper was started a moment ago and makes its socket any time now.
                if asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(codec.frame(Hello(version=codec.VERSION, name=self.name)))
        self.connected = True
        frames = codec.FrameReader(codec.MAX_TO_VIEWER)
        while data := await reader.read(256 * 1024):
            for body in frames.feed(data):
                self._take(codec.decode(codec.to_viewer, body))

    def _take(self, message: ToViewer) -> None:
        match message:
            case Welcome():
                self.client = message.client
            case Refused():
                self.trouble = message.reason
            case HistorySent():
                self.history = History.receive(message)
            case _:
                self.history.apply(message)
                if isinstance(message, RunStarted) and self.exchange.refused:
                    self.exchange = Exchange()  # "not built yet" is true no more
                if isinstance(message, Reply):
                    self._answered(message)
        self._changes += 1

    def _answered(self, reply: Reply) -> None:
        asked = self._open.pop(reply.request, None) if reply.client == self.client else None
        # What others did is worth the line too, but their "done" and "rejected" are not ours to read.
        if isinstance(asked, WatchCurvature) and isinstance(reply, CommandDone):
            return  # the view that asked shows it
        if asked is not None or isinstance(reply, KnobTurned):
            self.exchange = Exchange(asked=asked, reply=reply)

    @property
    def over(self) -> str:
        """Why nothing can be asked any more, or not yet; empty where it can."""
        if not self.history.live:
            return "the run has ended"
        return "" if self.connected else NOBODY

    def send(self, command: AnyCommand, source: Source = "key") -> int | None:
        """Ask for something; the number its reply will carry, or None when there is nobody to ask."""
        if self._writer is None or self.over:
            self.refuse(self.over or NOBODY)
            return None
        request = self._joined(command, source)
        if request is None:
            self.send_gathered()
            self._requests += 1
            request = Request(request=self._requests, command=command, source=source)
            if isinstance(command, TurnKnob) and knobs.KNOBS[command.knob].combinable:
                self._gather_until_s = asyncio.get_running_loop().time() + GATHER_S
                self._gather(request)
            else:
                self._writer.write(codec.frame(request))
        self._open[request.request] = request.command
        if not isinstance(command, WatchCurvature):
            self.exchange = Exchange(asked=request.command)
        self._changes += 1
        return request.request

    def _joined(self, command: AnyCommand, source: Source) -> Request | None:
        """The request that is being gathered, with this command in it; None where it does not go into that."""
        before = self._gathered
        if before is None or before.source != source:
            return None
        if not (isinstance(before.command, TurnKnob) and isinstance(command, TurnKnob)):
            return None
        both = knobs.combined(before.command, command)
        if both is None:
            return None
        request = msgspec.structs.replace(before, command=both)
        self._gather(request)
        return request

    def _gather(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        if self._sending is not None:
            self._sending.cancel()
        self._gathered = request
        self._sending = loop.call_at(min(self._gather_until_s, loop.time() + QUIET_S), self.send_gathered)

    def send_gathered(self) -> None:
        """Send what is being gathered now."""
        request, self._gathered = self._gathered, None
        if self._sending is not None:
            self._sending.cancel()
        if request is not None and self._writer is not None:
            self._writer.write(codec.frame(request))

    def awaits(self, request: int) -> bool:
        """Whether a request has no reply yet."""
        return request in self._open

    def expected(self, knob: str, target: str) -> str | None:
        """The value of the newest request for a knob that has no reply yet."""
        for command in reversed(self._open.values()):
            if isinstance(command, TurnKnob) and (command.knob, command.target) == (knob, target):
                return command.value
        return None

    def refuse(self, reason: str) -> None:
        """Answer a key here, without asking: its knob cannot act."""
        self.exchange = Exchange(refused=reason)
        self._changes += 1

    def _lose(self, why: str) -> None:
        self.connected = False
        self.trouble = self.trouble or why
        self._changes += 1
