"""Fields of dialogs: lists for the mouse, in which typing finds an entry, and a row of values to choose from."""

from __future__ import annotations

from time import monotonic
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.widgets import OptionList, Static

from tui_descent.dashboard import colours

# Letters that are typed within this time of each other are one word.
TYPING_S = 1.0


class ClickList(OptionList):
    """A click highlights an entry, a double click chooses it."""

    async def _on_click(self, event: Click) -> None:
        event.prevent_default()
        clicked: int | None = event.style.meta.get("option")
        if clicked is None or self._options[clicked].disabled:
            return
        self.highlighted = clicked
        if event.chain > 1:
            self.action_select()


class FindList(ClickList):
    """Typing a name highlights the first entry that begins with it."""

    def __init__(self, *content: object, id: str | None = None) -> None:
        super().__init__(*content, id=id)  # type: ignore[arg-type]
        self._typed, self._typed_at_s = "", 0.0

    def on_key(self, event: events.Key) -> None:
        """Highlight the entry that the letters typed so far belong to."""
        letter = event.character or ""
        if not letter.isalnum() and letter != "_":
            return
        now_s = monotonic()
        typed = letter if now_s - self._typed_at_s > TYPING_S else self._typed + letter
        for text in (typed, letter):
            found = [n for n, option in enumerate(self.options) if _begins(option.id, text)]
            if found:
                self._typed, self._typed_at_s = text, now_s
                self.highlighted = found[0]
                event.stop()
                return


def _begins(name: str | None, text: str) -> bool:
    return name is not None and name.rpartition(":")[2].lower().startswith(text.lower())


class ValueRow(Static, can_focus=True):
    """A label and its possible values in a row; ← → choose one, as does a click. The first value means "automatic"."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", show=False),
        Binding("right", "move(1)", show=False),
    ]

    def __init__(self, label: str, values: tuple[str, ...], chosen: str | None = None) -> None:
        super().__init__()
        self._label, self._values = label, ("auto", *(value for value in values if value != "auto"))
        self._at = self._values.index(chosen) if chosen in self._values else 0

    @property
    def value(self) -> str | None:
        """The chosen value; None for `auto`."""
        return self._values[self._at] if self._at else None

    def on_mount(self) -> None:
        self._show()

    def on_focus(self) -> None:
        self._show()

    def on_blur(self) -> None:
        self._show()

    def action_move(self, by: int) -> None:
        """Choose the next value."""
        self._at = (self._at + by) % len(self._values)
        self._show()

    def on_click(self, event: Click) -> None:
        """Choose the value that was clicked."""
        if (clicked := event.style.meta.get("value")) is not None:
            self._at = clicked
            self._show()

    def _show(self) -> None:
        text = Text(f"  {self._label:<7}", style=colours.KEY if self.has_focus else colours.DIM)
        for n, value in enumerate(self._values):
            style = colours.CHOSEN if n == self._at else colours.TEXT
            text.append(f" {value} ", style=style.from_meta({"value": n}) + style)
            text.append(" ")
        if self.has_focus:
            text.append(" ← →", style=colours.DIM)
        self.update(text)
