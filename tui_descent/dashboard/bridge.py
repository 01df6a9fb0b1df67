"""The dashboard's connection to the keeper. Received events update a `History`, and requests are matched with their
replies.

If the connection is lost, the screen shows that; no exception is raised. As long as the run lives, the bridge connects
again: the trainer replaces a keeper that was killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tui_descent.protocol import codec
from tui_descent.protocol.commands import (
    HARMLESS,
    AnyCommand,
    Hello,
    MeasureBackwardPass,
    Request,
    ResizeTerminal,
    Source,
    TurnKnob,
    WatchCurvature,
    WatchLens,
    WatchTask,
)
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    Heartbeat,
    HistorySent,
    Joined,
    KnobTurned,
    Noted,
    Refused,
    RunStarted,
    ToViewer,
    Welcome,
)
from tui_descent.telemetry.history import History

Reply = KnobTurned | CommandDone | CommandRejected
# The dashboard sends these by itself, so the footer shows their replies only if they are rejections.
UNASKED = (WatchCurvature, WatchTask, WatchLens, MeasureBackwardPass, ResizeTerminal)
KEEPER_GONE = "the run's keeper has ended unexpectedly"
# In these states the run makes no steps until it is resumed.
STOPPED_STATES = frozenset({"paused", "held", "waiting"})
NOT_CONNECTED = "not connected to the run"
RECONNECTING = "reconnecting to the run"
READ_ONLY = "this dashboard is read-only: it cannot change the run"
CONNECT_TIMEOUT_S = 10.0
RECONNECT_WITHIN_S = 10.0
RETRY_S = 0.05
KEEPER_SILENT_AFTER_S = 4.0  # the keeper sends something every second


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The last request and its reply, or the reason why a key sent no request.

    `command` is None if the reply belongs to another viewer's request.
    """

    command: AnyCommand | None = None
    reply: Reply | None = None
    refusal: str = ""


class Bridge:
    """Holds the run's history. The frame timer redraws when `revision` has changed.

    `keeper_gone` says whether the keeper's process has exited, if that can be known; `run_lives` whether any process of
    the run is alive. With `read_only`, requests that change the run are refused.
    """

    def __init__(
        self,
        socket: Path,
        *,
        name: str = "viewer",
        keeper_gone: Callable[[], bool] = lambda: False,
        run_lives: Callable[[], bool] = lambda: False,
        read_only: bool = False,
    ) -> None:
        self.socket = socket
        self.name = name
        self.read_only = read_only
        self.run_id = ""
        self.reconnecting = False
        self.lost_connections = 0
        self._keeper_gone, self._run_lives = keeper_gone, run_lives
        self.history = History()
        self.connected = False
        self.trouble = ""
        self.exchange = Exchange()
        self.client: int | None = None
        self._heard_s = 0.0  # when the keeper sent something last
        self._has_heartbeat = True  # until the keeper's first frame says otherwise
        self._changes = 0
        self._requests = 0
        self._unanswered: dict[int, AnyCommand] = {}
        self._writer: asyncio.StreamWriter | None = None

    @property
    def revision(self) -> tuple[int, int, int]:
        """A value that changes when anything to be drawn changes, including the history object itself."""
        return id(self.history), self.history.revision, self._changes

    async def run(self) -> None:
        """Connect and read until the run has ended or its keeper is gone for good."""
        try:
            reader, self._writer = await self._connect(CONNECT_TIMEOUT_S, lambda: not self._keeper_gone())
        except OSError as error:
            why = f"no run at {self.socket.name}: {error.strerror or error}"
            self._disconnect(KEEPER_GONE if self._keeper_gone() else why)
            return
        while True:
            why = "the keeper closed the connection"
            try:
                await self._read(reader, self._writer)
            except OSError as error:
                why = str(error)
            except codec.FrameError as error:
                self.trouble = str(error)
            finally:
                self._writer.close()
            if self.trouble or not self.history.live:
                self._disconnect(why)
                return
            self._lose_connection()
            try:
                reader, self._writer = await self._connect(RECONNECT_WITHIN_S, self._run_lives)
            except OSError:
                self._disconnect(KEEPER_GONE if self._keeper_gone() else why)
                return

    async def _connect(
        self, within_s: float, is_awaited: Callable[[], bool]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as soon as the keeper listens: it may have only just been started. Raises `OSError`."""
        end = asyncio.get_running_loop().time() + within_s
        while True:
            try:
                return await asyncio.open_unix_connection(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                if not is_awaited() or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(codec.frame(Hello(version=codec.VERSION, name=self.name, read_only=self.read_only)))
        self.connected, self.reconnecting, self._heard_s = True, False, time.monotonic()
        frames = codec.FrameReader(codec.MAX_TO_VIEWER)
        while data := await reader.read(256 * 1024):
            self._heard_s = time.monotonic()
            for body in frames.feed(data):
                self._take(codec.decode(codec.to_viewer, body))

    def _take(self, message: ToViewer) -> None:
        match message:
            case Heartbeat() | Joined():
                return
            case Welcome():
                self.client, self.run_id, self._has_heartbeat = message.client, message.run, message.heartbeat
            case Refused():
                self.trouble = message.reason
            case HistorySent():
                self.history = History.receive(message)
            case _:
                self.history.apply(message)
                if isinstance(message, RunStarted) and self.exchange.refusal:
                    self.exchange = Exchange()  # "not built yet" is no longer true
                if isinstance(message, Reply):
                    self._take_reply(message)
        self._changes += 1

    def _take_reply(self, reply: Reply) -> None:
        command = self._unanswered.pop(reply.request, None) if reply.client == self.client else None
        if isinstance(command, UNASKED) and isinstance(reply, CommandDone):
            return
        # Other viewers' interventions are shown too, but not their other replies.
        if command is not None or isinstance(reply, KnobTurned):
            self.exchange = Exchange(command=command, reply=reply)

    @property
    def keeper_silent_s(self) -> int:
        """For how many seconds nothing has come from the keeper; 0 as long as it responds."""
        silent_s = time.monotonic() - self._heard_s
        is_silent = self._has_heartbeat and self.connected and self.history.live and silent_s >= KEEPER_SILENT_AFTER_S
        return int(silent_s) if is_silent else 0

    def give_up(self) -> bool:
        """Disconnect if the keeper does not respond. Returns whether this was the case."""
        if silent_s := self.keeper_silent_s:
            self._disconnect(f"the run's keeper has not responded for {silent_s} s")
        return silent_s > 0

    @property
    def unavailable(self) -> str:
        """Why no request can be sent now; empty if requests can be sent."""
        if not self.history.live:
            return "the run has ended"
        if self.reconnecting:
            return RECONNECTING
        return "" if self.connected else NOT_CONNECTED

    def send(self, command: AnyCommand, source: Source = "key") -> int | None:
        """Send a request. Returns the number that its reply will carry, or None if the request cannot be sent."""
        if self._writer is None or self.unavailable:
            self.refuse(self.unavailable or NOT_CONNECTED)
            return None
        if self.read_only and not isinstance(command, HARMLESS):
            if not isinstance(command, UNASKED):
                self.refuse(READ_ONLY)
            return None
        self._requests += 1
        self._writer.write(codec.frame(Request(request=self._requests, command=command, source=source)))
        self._unanswered[self._requests] = command
        if not isinstance(command, UNASKED):
            self.exchange = Exchange(command=command)
        self._changes += 1
        return self._requests

    def awaits_reply(self, request: int) -> bool:
        """Whether the request is still without a reply."""
        return request in self._unanswered

    def requested_value(self, knob: str, target: str) -> str | None:
        """The value in the newest unanswered request for a knob; None if there is no such request."""
        for command in reversed(self._unanswered.values()):
            if isinstance(command, TurnKnob) and (command.knob, command.target) == (knob, target):
                return command.value
        return None

    def refuse(self, reason: str) -> None:
        """Show why a key sends no request, and add that to the events."""
        self.exchange = Exchange(refusal=reason)
        newest = self.history.log[-1] if self.history.log else None
        if self.history.live and not (isinstance(newest, Noted) and newest.text == reason):
            self.history.apply(Noted(step=self.history.steps, text=reason, level="warning"))
        self._changes += 1

    def _lose_connection(self) -> None:
        """Show that the connection is lost. The replies to the last requests will not come any more."""
        self.connected, self.reconnecting = False, True
        self.lost_connections += 1
        if any(not isinstance(command, UNASKED) for command in self._unanswered.values()):
            self.exchange = Exchange(refusal="the connection was lost before the last request was answered")
        self._unanswered.clear()
        self._changes += 1

    def _disconnect(self, reason: str) -> None:
        self.connected = self.reconnecting = False
        self.trouble = self.trouble or reason
        self._changes += 1
