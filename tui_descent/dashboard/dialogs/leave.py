"""Leaving a run that is still going on."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog

WAYS = (
    ("s", "stop", "the step in progress is finished, the run ends and stays recorded; then this screen closes"),
    ("escape  c", "stay", "the run goes on, nothing changes"),
)


class LeaveDialog(Dialog[bool]):
    """True is stop."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "stop", show=False), Binding("c,q", "away", show=False)]

    def compose(self) -> ComposeResult:
        """The two ways and what each does."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Leave this run?"
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for style in (colours.KEY, colours.BRIGHT, colours.TEXT):
                table.add_column(style=style, no_wrap=style is not colours.TEXT)
            for way in WAYS:
                table.add_row(*way)
            yield Static(table)

    def action_stop(self) -> None:
        """End the run."""
        self.dismiss(True)
