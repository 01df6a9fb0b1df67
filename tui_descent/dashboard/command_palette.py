"""Textual's command palette, filled from the table of knobs and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui_descent.dashboard import actions
from tui_descent.protocol.commands import AnyCommand, TurnKnob

if TYPE_CHECKING:
    from tui_descent.dashboard.screens.run import RunScreen


class KnobsProvider(Provider):
    """Each key's action and each knob's choices, by name."""

    async def discover(self) -> Hits:
        """Before anything is typed: all of it."""
        for text, help_, run in self._entries():
            yield DiscoveryHit(text, run, help=help_)

    async def search(self, query: str) -> Hits:
        """What matches the query."""
        matcher = self.matcher(query)
        for text, help_, run in self._entries():
            if (score := matcher.match(text)) > 0:
                yield Hit(score, matcher.highlight(text), run, help=help_)

    def _entries(self) -> list[tuple[str, str, Callable[[], None]]]:
        from tui_descent.dashboard.screens.run import RunScreen

        screen = self.screen
        if not isinstance(screen, RunScreen):
            return []
        return [
            (text, help_, partial(_run, screen, place, name, command))
            for text, help_, place, name, command in actions.palette()
        ]


def _run(screen: RunScreen, place: int, name: str, command: AnyCommand | None) -> None:
    if isinstance(command, TurnKnob):
        screen.ask_for_target(command)
    else:
        actions.press(screen, place, name)
