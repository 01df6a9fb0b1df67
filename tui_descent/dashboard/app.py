"""The dashboard app.

It connects to the keeper, redraws the run screen on a timer, and quits with the run's exit code.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from rich.console import RenderableType
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.screen import ModalScreen, Screen

from tui_descent import output
from tui_descent.dashboard import actions, colours
from tui_descent.dashboard.bridge import READ_ONLY, Bridge
from tui_descent.dashboard.command_palette import CommandProvider
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.leave import Answer, LeaveDialog
from tui_descent.dashboard.left import Left, Then
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.panels.story import read_scenario
from tui_descent.dashboard.screen_writer import ScreenWriter
from tui_descent.dashboard.screens.run import RunScreen
from tui_descent.dashboard.signals import Signals, run_app
from tui_descent.dashboard.terminal_backlog import is_behind
from tui_descent.dashboard.theme import THEME
from tui_descent.dashboard.view import Compared
from tui_descent.end_report import print_detached, print_end, print_summary, print_trouble
from tui_descent.protocol.commands import Stop
from tui_descent.protocol.events import Status
from tui_descent.protocol.exit_status import exit_code

STOP_TIMEOUT_S = 10.0
SCRIPT_RESTARTS = "your script decides where it starts; stop it with q and run it again"
SCRIPT_HAS_NO_GALLERY = "the gallery is for presets; q leaves your script"
EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": 0, "diverged": 0, "failed": 1, "lost": 4}


class DescentApp(App[int]):
    """The dashboard of one run; to the keeper it is one viewer.

    `log_path`: the file with what the trainer prints. `script`: the trainer is a user's script, which may save for as
    long as it needs after a stop. `scenario` is the run's, as a table. `keeper_gone` says whether the keeper's process
    has exited, `run_lives` whether any process of the run is alive. With `read_only`, the run cannot be changed.
    """

    CSS_PATH = Path(__file__).parent / "dashboard.tcss"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {CommandProvider}
    TITLE = "tui-descent"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c,ctrl+q", "quit", show=False, priority=True)]

    def __init__(
        self,
        socket: Path,
        *,
        name: str,
        fps: float = 10.0,
        log_path: Path | None = None,
        signals: Signals | None = None,
        script: bool = False,
        scenario: dict[str, Any] | None = None,
        keeper_gone: Callable[[], bool] = lambda: False,
        run_lives: Callable[[], bool] = lambda: False,
        read_only: bool = False,
        bridge: Bridge | None = None,
        screen: type[RunScreen] = RunScreen,
    ) -> None:
        super().__init__()
        self.bridge = bridge or Bridge(
            socket, name="dashboard", keeper_gone=keeper_gone, run_lives=run_lives, read_only=read_only
        )
        self._is_script = script
        self.run_name = name
        self.fps = fps
        self.run_screen = screen(
            self.bridge, name=name, log_path=log_path, script=script, scenario=read_scenario(scenario)
        )
        self._bridge_task: asyncio.Task[None] | None = None
        self._stop_deadline_s: float | None = None
        self.then: Then = "quit"  # what follows when the dashboard is closed
        self.stop_requested = False
        self._signals = signals
        self._writer = ScreenWriter()

    async def on_mount(self) -> None:
        """Show the screen before connecting, so the first frame does not wait for the connection."""
        self.register_theme(THEME)
        self.theme = THEME.name
        colours.choose_palette("none" if self.no_color else self.console.color_system)
        if self._signals is not None:
            self._signals.attach(self.exit)
        await self.push_screen(self.run_screen)
        self._bridge_task = asyncio.create_task(self.bridge.run(), name="bridge")
        self.set_interval(1 / self.fps, self.frame)

    async def on_unmount(self) -> None:
        """Close the connection."""
        if self._bridge_task is not None:
            self._bridge_task.cancel()
            await asyncio.gather(self._bridge_task, return_exceptions=True)

    def frame(self) -> None:
        """Redraw if anything changed: at most `fps` times a second, and only as often as the terminal keeps up."""
        if not is_behind(self._driver):
            self.run_screen.draw()
        if self._stop_deadline_s is not None and (
            self.bridge.give_up()
            or not self.bridge.history.live
            or not self.bridge.connected
            or self._loop_time() > self._stop_deadline_s
        ):
            self.exit(self.exit_code())

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Textual calls this to write an update to the terminal."""
        # Beneath a dialog Textual updates the whole screen again and again.
        super()._display(screen, self._writer.shortened(renderable, repair=not isinstance(screen, ModalScreen)))

    def on_resize(self) -> None:
        """Send the whole screen again: the terminal has another size, or the program was suspended."""
        self._writer.forget()

    def exit_code(self) -> int:
        """The exit code of the command line. It depends on how the run ended."""
        ended = self.bridge.history.ended
        if ended is not None:
            return exit_code(ended, EXIT_CODES)
        return 0 if self.bridge.connected else EXIT_CODES["lost"]

    def action_press(self, key: str) -> None:
        """Handle a key of the run screen. `key` is Textual's name for it."""
        actions.press(self.run_screen, key)

    def action_toggle_line(self, line: str) -> None:
        """Hide a line of a chart, or show it again: its entry in the legend was clicked."""
        self.run_screen.toggle_line(line)

    def on_panel_key_clicked(self, event: Panel.KeyClicked) -> None:
        """Act as the key that was clicked."""
        self.action_press(event.key)

    async def action_quit(self) -> None:
        """Ask whether to quit, or close the open dialog. Textual's ctrl+q would end the run at once."""
        if isinstance(self.screen, Dialog):
            self.screen.action_cancel()
        elif isinstance(self.screen, ModalScreen):  # the palette
            self.screen.dismiss(None)
        else:
            self.run_screen.leave()

    def on_run_screen_leave_requested(self, event: RunScreen.LeaveRequested) -> None:
        """Quit when the run is over, or when its keeper does not respond; otherwise ask."""
        if self._is_script and event.then != "quit":
            self.bridge.refuse(SCRIPT_RESTARTS if event.then == "restart" else SCRIPT_HAS_NO_GALLERY)
            return
        if self.bridge.read_only and event.then in ("restart", "race") and self.bridge.history.live:
            self.bridge.refuse(READ_ONLY)
            return
        self.then = event.then
        if self.bridge.give_up() or not self.bridge.history.live or not self.bridge.connected:
            self.exit(self.exit_code())
        elif self.bridge.read_only:
            self.exit(0)
        elif self._is_script and self._stop_deadline_s is not None:  # still running, but the user does not want to wait
            self.bridge.send(Stop(kill=True))
            self._stop_deadline_s = self._loop_time() + STOP_TIMEOUT_S
        else:
            dialog = LeaveDialog(self.bridge.run_id, script=self._is_script, then=self.then)
            self.push_screen(dialog, self._leave_answered)

    def _leave_answered(self, answer: Answer | None) -> None:
        if answer is None:
            self.then = "quit"
            return
        if answer == "detach" or self.bridge.send(Stop()) is None:
            self.exit(self.exit_code())
            return
        self.stop_requested = True
        self._stop_deadline_s = math.inf if self._is_script else self._loop_time() + STOP_TIMEOUT_S
        self.run_screen.view = replace(self.run_screen.view, stopping=self._is_script)

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()


def run_dashboard(
    socket: Path,
    *,
    name: str,
    fps: float = 10.0,
    log_path: Path | None = None,
    script: bool = False,
    scenario: dict[str, Any] | None = None,
    keeper_gone: Callable[[], bool] = lambda: False,
    run_lives: Callable[[], bool] = lambda: False,
    read_only: bool = False,
    compared: Compared | None = None,
    come_back: Callable[[], str] = lambda: "tui-descent attach",
) -> Left:
    """Show a run until the user leaves it. Then print how it ended, or how to come back if it goes on.

    `come_back` gives the command for that. `compared` is another run, whose loss is drawn too.
    """
    signals = Signals()
    app = DescentApp(
        socket,
        name=name,
        fps=fps,
        log_path=log_path,
        script=script,
        scenario=scenario,
        keeper_gone=keeper_gone,
        run_lives=run_lives,
        read_only=read_only,
        signals=signals,
    )
    app.run_screen.view = replace(app.run_screen.view, compared=compared)
    code = run_app(app, signals)
    bridge = app.bridge
    ended, trouble = bridge.history.ended, bridge.trouble
    goes_on = ended is None and not app.stop_requested
    if goes_on and (bridge.connected or bridge.reconnecting):
        print_detached(bridge.history, bridge.run_id or name, come_back())
    if signals.caught is not None:
        return Left(128 + signals.caught, "quit", goes_on)
    if ended is not None:
        if ended.log_path is not None or ended.status == "failed" or script:
            print_end(ended, log_path if script else None)
        if bridge.history.started is not None:  # otherwise the reason above says it all
            print_summary(bridge.history)
        if ended.status == "lost" and scenario is not None and bridge.run_id and not bridge.history.lanes:
            output.say(f"tui-descent: go on with: tui-descent resume {bridge.run_id}")
    elif code == EXIT_CODES["lost"] and trouble:
        print_trouble(trouble, log_path if script and keeper_gone() else None, come_back() if run_lives() else "")
    return Left(code if code is not None else app.return_code or 0, app.then, goes_on)
