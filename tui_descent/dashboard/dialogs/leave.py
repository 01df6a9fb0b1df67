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

STOP = "finish this step, end the run and quit; nothing is saved"
STOP_SCRIPT = "end the loop after this step; your script may then still save"
STAY = "keep the run and this screen open"


class LeaveDialog(Dialog[bool]):
    """Answers with True if the run should stop. `script` says that the run is a user's script."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "stop", show=False), Binding("c,q", "cancel", show=False)]

    def __init__(self, *, script: bool = False) -> None:
        super().__init__()
        self._is_script = script

    def compose(self) -> ComposeResult:
        """A table of the two choices and what they do."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Quit this run?"
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for style in (colours.KEY, colours.BRIGHT, colours.TEXT):
                table.add_column(style=style, no_wrap=style is not colours.TEXT)
            table.add_row("s", "stop", STOP_SCRIPT if self._is_script else STOP)
            table.add_row("escape  c", "stay", STAY)
            yield Static(table)

    def action_stop(self) -> None:
        self.dismiss(True)
