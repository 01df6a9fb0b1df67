"""Textual's command palette, filled from the tables of key bindings and knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui_descent.dashboard.actions import ask_number, press
from tui_descent.dashboard.screens.run import RunScreen
from tui_descent.dashboard.view import VIEWS
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.knobs import KNOBS, PACES

# The entry's text, its help text, and the function that it runs.
Entry = tuple[str, str, Callable[[], None]]


class CommandProvider(Provider):
    """Offers every key's action and every choice of every knob."""

    async def discover(self) -> Hits:
        """All entries, which are shown before anything is typed."""
        for text, help_, run in self._entries():
            yield DiscoveryHit(text, run, help=help_)

    async def search(self, query: str) -> Hits:
        """The entries that match the query."""
        matcher = self.matcher(query)
        for text, help_, run in self._entries():
            if (score := matcher.match(text)) > 0:
                yield Hit(score, matcher.highlight(text), run, help=help_)

    def _entries(self) -> Iterator[Entry]:
        if isinstance(self.screen, RunScreen):
            yield from _key_entries(self.screen)
            yield from _knob_entries(self.screen)


def _key_entries(screen: RunScreen) -> Iterator[Entry]:
    for binding in KEYS:
        if binding.action == "show_view":
            for key, title in zip(binding.keys, VIEWS.values(), strict=True):
                yield f"view: {title}  ({key})", binding.description, partial(press, screen, key)
        else:
            text = f"{binding.label}  ({binding.shown})"
            yield text, binding.description, partial(press, screen, binding.keys[0])


def _knob_entries(screen: RunScreen) -> Iterator[Entry]:
    for knob in KNOBS.values():
        for choice in knob.choices or (PACES if knob.kind == "pace" else ()):
            turn = TurnKnob(knob=knob.name, value=choice)
            yield f"{knob.name} = {choice}", f"{knob.title}: {knob.acts}", partial(screen.send_to_selection, turn)
        for way in knob.ways[1:] if knob.choices == ("off", "on") else ():
            turn = TurnKnob(knob=knob.name, value="on", way=way)
            text = f"{knob.name} = on, way = {way}"
            yield text, f"{knob.title}: {knob.acts}", partial(screen.send_to_selection, turn)
        if knob.kind in ("number", "pair"):
            yield f"{knob.name} = …", f"{knob.title}: {knob.values}", partial(ask_number, screen, knob.name)
