"""The card at the end of a preset's run: what happened, which claims have held, what to try next."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.scenario.keys import BINDING_OF
from tui_descent.telemetry.story import EndCard

MARKS = {"held": ("✓", colours.GREEN), "not held": ("✗", colours.ORANGE), "not tested": ("·", colours.DIM)}
STAY = frozenset({"up", "down", "pageup", "pagedown", "home", "end"})


class EndCardDialog(Dialog[str]):
    """Answers with the key that was pressed, if it is a key of the run screen: the card closes and the key acts."""

    hints = "R restart · p gallery · space more steps · q leave · escape closes"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "cancel", show=False)]

    def __init__(self, card: EndCard) -> None:
        super().__init__()
        self._card = card

    def compose(self) -> ComposeResult:
        """The three sections."""
        with VerticalScroll(classes="dialog wide") as box:
            box.border_title = "The end of this run"
            yield Static(_section("What happened", self._card.happened))
            if self._card.claims:
                yield Static(Text("What this preset claims", style=colours.BRIGHT))
                yield Static(_claims(self._card))
            yield Static(_section("What to try next", self._card.next))

    def on_key(self, event: events.Key) -> None:
        """If another key of the run screen is pressed, close the card and let the key act."""
        if event.key in BINDING_OF and event.key not in STAY and event.key not in ("escape", "enter"):
            event.stop()
            self.dismiss(event.key)


def _section(title: str, sentences: tuple[str, ...]) -> Group:
    lines = Text("\n".join(safe(sentence) for sentence in sentences), style=colours.TEXT)
    return Group(Text(title, style=colours.BRIGHT), Padding(lines, (0, 0, 1, 2)))


def _claims(card: EndCard) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column(width=4, justify="right")
    table.add_column(ratio=3, style=colours.TEXT)
    table.add_column(ratio=2)
    for result in card.claims:
        sign, style = MARKS[result.outcome]
        table.add_row(Text(sign, style=style), Text(safe(result.claim)), Text(safe(result.found), style=style))
    table.add_row("", "", "")
    return table
