"""The frame of all dialogs: a box in the middle, escape leaves without doing anything."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer | None], Generic[Answer]):
    """Answers with a value, or with None by escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "away", "back", show=False),
        Binding("ctrl+c", "away", "back", show=False),
    ]

    def action_away(self) -> None:
        """Leave without an answer."""
        self.dismiss(None)
