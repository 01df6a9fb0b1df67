"""The dialog for quitting while the run is live."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog

CHOICES = (
    ("s", "stop", "finish this step, end the run and quit"),
    ("escape  c", "stay", "keep the run and this screen open"),
)


class LeaveDialog(Dialog[bool]):
    """Answers with True if the run shall stop."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "stop", show=False), Binding("c,q", "cancel", show=False)]

    def compose(self) -> ComposeResult:
        """A table of the two choices and what they do."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Quit this run?"
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for style in (colours.KEY, colours.BRIGHT, colours.TEXT):
                table.add_column(style=style, no_wrap=style is not colours.TEXT)
            for choice in CHOICES:
                table.add_row(*choice)
            yield Static(table)

    def action_stop(self) -> None:
        self.dismiss(True)
