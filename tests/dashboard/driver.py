"""A dashboard on a scripted keeper, and what its screen says."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_run import ScriptedKeeper
from textual.app import App
from textual.pilot import Pilot

from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.protocol.events import AnyEvent
from tui_descent.telemetry.history import History

GOLDEN = Path(__file__).parent / "golden"
PATIENCE_S = 8.0


@dataclass
class Play:
    """The three who play."""

    app: DescentApp
    pilot: Pilot[int]
    keeper: ScriptedKeeper

    def text(self) -> str:
        """The screen as text."""
        return text_of(self.app)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it, with an end."""
        await until(self.pilot, condition, self.text)

    async def sees(self, *words: str) -> None:
        """Wait until all of it is on screen."""
        await self.until(lambda: all(word in self.text() for word in words))

    async def press(self, *keys: str) -> None:
        """Keys, one after the other."""
        await self.pilot.press(*keys)

    async def drawn(self) -> None:
        """Wait for the screen to hold all that was told."""
        await self.until(lambda: _gist(self.app.bridge.history) == _gist(self.keeper.history))
        await self.until(lambda: self.app.run_screen.up_to_date)
        # A panel that came or went moves the others, which are then drawn once more.
        seen = ""
        while seen != (seen := self.text()):
            await self.pilot.pause(0.1)
            await self.until(lambda: self.app.run_screen.up_to_date)


def _gist(history: History) -> tuple[object, ...]:
    """Enough to tell that one side knows what the other does; revisions are each side's own."""
    readings = history.readings.step if history.readings else None
    counts = (history.steps, len(history.log), len(history.evaluations), readings)
    return (*counts, history.state, history.ended, history.started is None)


def text_of(app: App[Any]) -> str:
    """All rows, without blanks at their ends."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


async def until(pilot: Pilot[Any], condition: Callable[[], bool], told: Callable[[], str]) -> None:
    """Poll with an upper bound; what was on screen is the message."""
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, "in vain:\n" + told()
        await pilot.pause(0.02)


@asynccontextmanager
async def playing(
    size: tuple[int, int] = (120, 40), before: Iterable[AnyEvent] = (), *, replies: bool = True, pace_s: float = 0.0
) -> AsyncIterator[Play]:
    """A keeper with a past and a dashboard attached to it, whose slower panels need not be waited for."""
    # A socket's path may have no more than about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with ScriptedKeeper(socket, before=before, replies=replies) as keeper:
            app = DescentApp(socket, name="vanishing", fps=50)
            async with app.run_test(size=size) as pilot:
                play = Play(app, pilot, keeper)
                for panel in app.run_screen.query(Panel):
                    panel.pace_s = pace_s  # type: ignore[misc]
                await play.until(lambda: keeper.greeted)
                yield play


def compare(name: str, text: str) -> None:
    """The screen against its file; GOLDEN=write makes the file anew."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name}: if this is meant, write it anew with GOLDEN=write"
