"""The base class of all dialogs: a box in the middle; escape, ctrl+c and ctrl+q close it without an answer."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer | None], Generic[Answer]):
    """Answers with a value, or with None when cancelled.

    `hints` name the keys in the box's lower border, as in `enter applies · escape cancels`. A click on one of them
    presses the key with which it begins.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel", show=False)]
    hints: str = "escape cancels"

    def on_mount(self) -> None:
        """Show the hints."""
        self.show_hints()

    def show_hints(self) -> None:
        """Write the hints into the border."""
        words = " · ".join(_clickable(hint) for hint in self.hints.split(" · "))
        self.query_one(".dialog").border_subtitle = words

    def action_simulate(self, key: str) -> None:
        """Act as a key: its hint was clicked."""
        self.app.call_later(self.app.simulate_key, key)  # not now: the click is still being handled

    def dismiss(self, result: Answer | None = None) -> AwaitComplete:
        """Close with an answer. Keys that were pressed before the dialog had gone do nothing."""
        if self not in self.app.screen_stack:
            return AwaitComplete()
        return super().dismiss(result)

    def action_cancel(self) -> None:
        """Close without an answer."""
        self.dismiss(None)


def _clickable(hint: str) -> str:
    key = hint.partition(" ")[0]
    return f"[@click=screen.simulate('{key}')]{hint}[/]" if key.isascii() else hint
