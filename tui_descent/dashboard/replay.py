"""The dashboard over a recorded run, with a time cursor. It needs no keeper and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.bridge import UNASKED, Bridge, Exchange
from tui_descent.dashboard.left import Left
from tui_descent.dashboard.panels.timeline import TimelinePanel
from tui_descent.dashboard.screens.run import RunScreen
from tui_descent.dashboard.signals import Signals, run_app
from tui_descent.dashboard.view import Compared
from tui_descent.protocol.commands import AnyCommand, Source
from tui_descent.protocol.launch import LOG_FILE, Launch
from tui_descent.scenario.keys import BINDING_OF
from tui_descent.telemetry.record import Record
from tui_descent.telemetry.record.player import Player

RECORDED = "a recorded run cannot be steered"
PARTS = 100  # an arrow key moves by one of so many parts of the run


class ReplayBridge(Bridge):
    """Takes the history from a player instead of a keeper."""

    def __init__(self, player: Player) -> None:
        super().__init__(Path(), name="replay", read_only=True)
        self.player = player
        self.history = player.history
        self.connected = True
        self._followed: object = None  # the place and speed that were drawn last

    async def run(self) -> None:
        """There is nothing to connect to."""
        await asyncio.Event().wait()

    @property
    def keeper_silent_s(self) -> int:
        return 0

    @property
    def unavailable(self) -> str:
        return RECORDED

    def send(self, command: AnyCommand, source: Source = "key") -> int | None:
        """Refuse what a user asks for; what the screen asks for by itself is not recorded."""
        if not isinstance(command, UNASKED):
            self.refuse(RECORDED)
        return None

    def refuse(self, reason: str) -> None:
        """Show why a key does nothing. The events are those of the run."""
        self.exchange = Exchange(refusal=reason)
        self._changes += 1

    def follow(self) -> None:
        """Take the player's present history."""
        player = self.player
        if self.history is not player.history:
            self.history = player.history
            self.exchange = Exchange()
        if (shown := (player.position, player.playing, player.speed)) != self._followed:
            self._followed = shown
            self._changes += 1


class ReplayScreen(RunScreen):
    """The screen of a run with a time line, and the keys that move along it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"app.press('{key}')", show=False) for key in ("home", "end", "shift+left", "shift+right")
    ]
    bridge: ReplayBridge

    def compose(self) -> ComposeResult:
        """The time line is above the footer."""
        for widget in super().compose():
            if widget.id == "footer":
                yield TimelinePanel(self.bridge.player, id="timeline")
            yield widget

    def _show_end(self) -> None:
        """The end card offers keys that steer."""


class ReplayApp(DescentApp):
    """The dashboard of a recorded run."""

    def __init__(self, player: Player, launch: Launch | None, *, signals: Signals | None = None) -> None:
        log = None if launch is None or launch.has_own_terminal else launch.path / LOG_FILE
        super().__init__(
            Path(),
            name="run" if launch is None else launch.name,
            log_path=log,
            scenario=None if launch is None else launch.scenario,
            signals=signals,
            bridge=ReplayBridge(player),
            screen=ReplayScreen,
        )
        if launch is not None and launch.has_own_terminal:
            self.run_screen.view = replace(self.run_screen.view, own_terminal=True)
        self.player = player
        self._frame_s = time.monotonic()
        self._target: int | None = None  # where keys have moved the cursor since the last frame

    def frame(self) -> None:
        """Move along the record, then draw."""
        now_s = time.monotonic()
        elapsed_s, self._frame_s = now_s - self._frame_s, now_s
        player, screen = self.player, self.run_screen
        if self._target is not None:
            target, self._target = self._target, None
            player.seek(target)
        player.advance(min(elapsed_s, 1.0))
        assert isinstance(self.bridge, ReplayBridge)
        self.bridge.follow()
        if not screen.view.replay:
            screen.view = replace(screen.view, replay="replay")
        super().frame()

    def action_press(self, key: str) -> None:
        """Move the cursor, or handle a key of the run screen."""
        if (move := MOVES.get(key)) is not None:
            move(self)
        elif BINDING_OF[key].action in LOOKING:
            super().action_press(key)
        else:
            self.bridge.refuse(RECORDED)

    def move_to(self, position: int) -> None:
        """Move the cursor at the next frame: a key that is held would read the record too often otherwise."""
        self._target = min(max(position, 0), self.player.total)

    def move_by(self, steps: int) -> None:
        """Move the cursor by some steps."""
        self.move_to((self.player.position if self._target is None else self._target) + steps)

    def toggle_playing(self) -> None:
        """Play, or pause."""
        if self.player.playing:
            self.player.playing = False
        else:
            self.player.play()

    def on_run_screen_leave_requested(self, event: RunScreen.LeaveRequested) -> None:
        """Leave at once: nothing is lost."""
        if event.then in ("restart", "race"):
            self.bridge.refuse(RECORDED)
            return
        self.then = event.then
        self.exit(0)

    @property
    def part(self) -> int:
        """How many steps an arrow key moves the cursor by."""
        return max(1, self.player.total // PARTS)


MOVES: dict[str, Callable[[ReplayApp], None]] = {
    "left": lambda app: app.move_by(-app.part),
    "right": lambda app: app.move_by(app.part),
    "shift+left": lambda app: app.move_by(-1),
    "shift+right": lambda app: app.move_by(1),
    "full_stop": lambda app: app.move_by(1),
    "home": lambda app: app.move_to(0),
    "end": lambda app: app.move_to(app.player.total),
    "space": lambda app: app.toggle_playing(),
    "comma": lambda app: app.player.change_speed(-1),
    "semicolon": lambda app: app.player.change_speed(1),
}
# The actions that only change what is shown.
LOOKING = frozenset(
    {
        "help", "command_palette", "show_view", "toggle_log", "toggle_recent", "toggle_events", "show_other_lines",
        "toggle_ghosts", "focus_next_panel", "zoom", "show_story", "gallery", "leave", "up", "down", "open_layer",
        "clear_selection", "suspend",
    }
)  # fmt: skip


def replay(record: Record, launch: Launch | None, compared: Compared | None = None) -> Left:
    """Show a record until the user leaves it. `compared` is another run, whose loss is drawn too."""
    signals = Signals()
    app = ReplayApp(Player(record), launch, signals=signals)
    app.run_screen.view = replace(app.run_screen.view, compared=compared)
    run_app(app, signals)
    if signals.caught is not None:
        return Left(128 + signals.caught)
    return Left(0, app.then)
