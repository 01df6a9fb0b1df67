"""The dialog for quitting while the run is live."""

from __future__ import annotations

from typing import ClassVar, Literal

from rich.table import Table
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import ClickList

Then = Literal["quit", "restart", "gallery", "race"]

STOP = "finish this step, end the run and quit; nothing is saved"
STOP_SCRIPT = "end the loop after this step; your script may then still save"
RESTART = "end this run and start the same one again from step 0; nothing is saved"
GALLERY = "end this run and choose another preset; nothing is saved"
RACE = "end this run and race several optimizers from its start, on the same batches; nothing is saved"
TITLES = {
    "quit": "Quit this run?",
    "restart": "Restart this run?",
    "gallery": "Back to the gallery?",
    "race": "Race optimizers?",
}
STAY = "keep the run and this screen open"


class LeaveDialog(Dialog[bool]):
    """Answers with True if the run should stop. `script` says that the run is a user's script, `then` what follows."""

    hints = "↑ ↓ choose · enter answers · escape stays"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "stop", show=False), Binding("c,q", "cancel", show=False)]

    def __init__(self, *, script: bool = False, then: Then = "quit") -> None:
        super().__init__()
        self._is_script, self._then = script, then

    def compose(self) -> ComposeResult:
        """The two choices and what they do."""
        stop = STOP_SCRIPT if self._is_script else STOP
        does = {"quit": stop, "restart": RESTART, "gallery": GALLERY, "race": RACE}[self._then]
        word = "stop" if self._then == "quit" else self._then
        with Vertical(classes="dialog choice") as box:
            box.border_title = TITLES[self._then]
            yield ClickList(Option(_row("s", word, does), id="stop"), Option(_row("c", "stay", STAY), id="stay"))

    def on_mount(self) -> None:
        """Highlight the safe choice, unless a restart was asked for, which loses little."""
        self.query_one(OptionList).highlighted = 1 if self._then == "quit" else 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen row."""
        self.dismiss(event.option.id == "stop")

    def action_stop(self) -> None:
        self.dismiss(True)


def _row(key: str, word: str, does: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style=colours.KEY, width=2)
    table.add_column(style=colours.BRIGHT, width=8)
    table.add_column(style=colours.TEXT)
    table.add_row(key, word, does)
    return table
