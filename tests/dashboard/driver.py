"""Run the dashboard in a test, connected to a fake keeper, and read its screen."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_run import FakeKeeper
from rich.color import ColorSystem
from textual._context import visible_screen_stack
from textual.app import App
from textual.pilot import Pilot

from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.protocol.events import AnyEvent, Noted
from tui_descent.telemetry.history import History

GOLDEN = Path(__file__).parent / "golden"
TIMEOUT_S = 8.0


class Frame:
    """The app's method that draws a frame, and how often it was called."""

    def __init__(self, app: DescentApp) -> None:
        self.count, self._draw = 0, app.frame

    def __call__(self) -> None:
        self._draw()
        self.count += 1


@dataclass
class Dashboard:
    """The app, its Textual pilot and the keeper it is connected to."""

    app: DescentApp
    pilot: Pilot[int]
    keeper: FakeKeeper
    frame: Frame

    def text(self) -> str:
        """The screen as text."""
        return text_of(self.app)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, with a timeout."""
        await wait_until(self.pilot, condition, self.text)

    async def shows(self, *words: str) -> None:
        """Wait until all the words are on screen."""

        def shown() -> bool:
            text = self.text()
            return all(word in text for word in words)

        await self.wait_until(shown)

    async def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        await self.pilot.press(*keys)

    async def drawn(self) -> None:
        """Wait until the screen shows everything that was published."""
        await self.wait_until(lambda: _progress(self.app.bridge.history) == _progress(self.keeper.history))
        await self.wait_until(lambda: self.app.run_screen.up_to_date)
        # A panel that appears or disappears moves the others, which are then drawn again.
        seen = ""
        while seen != (seen := self.text()):
            await self.frames(2)
            await self.wait_until(lambda: self.app.run_screen.up_to_date)

    async def frames(self, count: int) -> None:
        """Wait for the next `count` frames; in a frame what has changed is drawn."""
        last = self.frame.count + count
        await self.wait_until(lambda: self.frame.count >= last)


def _progress(history: History) -> tuple[object, ...]:
    """Equal on both sides once every event has arrived. Revisions cannot be compared."""
    readings = history.readings.step if history.readings else None
    # The dashboard adds its own refusals to its log, as warnings.
    logged = sum(not (isinstance(entry, Noted) and entry.level == "warning") for entry in history.log)
    counts = (history.steps, logged, len(history.evaluations), readings)
    return (*counts, history.state, history.ended, history.started is None)


def text_of(app: App[Any]) -> str:
    """The screen's rows without trailing blanks."""
    visible_screen_stack.set(app._background_screens)  # those beneath a dialog
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


async def wait_until(pilot: Pilot[Any], condition: Callable[[], bool], text: Callable[[], str]) -> None:
    """Poll until the condition holds; on a timeout fail with the screen's text."""
    end = asyncio.get_running_loop().time() + TIMEOUT_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, "timeout; the screen was:\n" + text()
        await asyncio.sleep(0.01)
        pilot.app.screen._on_timer_update()  # as `pilot.pause` does, which takes longer


@asynccontextmanager
async def open_dashboard(
    size: tuple[int, int] = (120, 40),
    before: Iterable[AnyEvent] = (),
    *,
    replies: bool = True,
    heartbeat: bool = False,
    min_interval_s: float = 0.0,
    **options: Any,
) -> AsyncIterator[Dashboard]:
    """A dashboard connected to a fake keeper that has published `before`. Panels redraw without a minimum interval.

    `options` are those of the app.
    """
    # A socket's path may have no more than about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with FakeKeeper(socket, before=before, replies=replies, heartbeat=heartbeat) as keeper:
            app = DescentApp(socket, name="vanishing", fps=50, **options)
            app.frame = frame = Frame(app)  # type: ignore[method-assign]
            # The screen must not depend on the terminal in which the tests are run.
            app.console._color_system, app.no_color = ColorSystem.TRUECOLOR, False
            async with app.run_test(size=size) as pilot:
                dashboard = Dashboard(app, pilot, keeper, frame)
                for panel in app.run_screen.query(Panel):
                    panel.min_interval_s = min_interval_s  # type: ignore[misc]
                app.run_screen.beneath_dialog_s = min_interval_s  # type: ignore[misc]
                await dashboard.wait_until(lambda: keeper.has_viewer)
                yield dashboard


def compare(name: str, text: str) -> None:
    """Compare a screen with its golden file; GOLDEN=write rewrites the file."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name}: if the change is intended, run with GOLDEN=write"
