"""The dialog for leaving while the run is live: leave it running, stop it, or stay."""

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
from tui_descent.dashboard.left import Then

Answer = Literal["detach", "stop", "cancel"]

DETACH = "the run goes on; come back with:\ntui-descent attach {}"
DETACH_TO_GALLERY = "choose another preset; this run goes on"
STOP = "end the run after this step; its record is kept"
STOP_SCRIPT = "end the loop after this step; your script may still save"
RESTART = "end this run and start the same one again from step 0"
GALLERY = "end this run and choose another preset"
RACE = "end this run and race several optimizers from its start, on the same batches"
TITLES = {
    "quit": "Leave this run?",
    "restart": "Restart this run?",
    "gallery": "Back to the gallery?",
    "race": "Race optimizers?",
}
CANCEL = "keep this screen open"


class LeaveDialog(Dialog[Answer]):
    """`run` is the run's id. `script` says that it is a user's script, `then` what follows.

    The first row is the default.
    """

    hints = "↑ ↓ choose · enter answers · escape stays"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "answer('detach')", show=False),
        Binding("s", "answer('stop')", show=False),
        Binding("c,q", "cancel", show=False),
    ]

    def __init__(self, run: str, *, script: bool = False, then: Then = "quit") -> None:
        super().__init__()
        stop = STOP_SCRIPT if script else STOP
        does = {"quit": stop, "restart": RESTART, "gallery": GALLERY, "race": RACE}[then]
        self._title = TITLES[then]
        self._rows: dict[Answer, tuple[str, str, str]] = {
            "stop": ("s", then if then in ("restart", "race") else "stop", does),
            "cancel": ("c", "cancel", CANCEL),
        }
        if then == "quit":
            self._rows = {"detach": ("d", "detach", DETACH.format(run)), **self._rows}
        elif then == "gallery":
            rows = self._rows
            self._rows = {"stop": rows["stop"], "detach": ("d", "detach", DETACH_TO_GALLERY), "cancel": rows["cancel"]}

    def compose(self) -> ComposeResult:
        """The choices and what they do."""
        with Vertical(classes="dialog choice") as box:
            box.border_title = self._title
            yield ClickList(*(Option(_row(*row), id=answer) for answer, row in self._rows.items()))

    def on_mount(self) -> None:
        """Highlight the default."""
        self.query_one(OptionList).highlighted = 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen row."""
        self.action_answer(event.option.id or "cancel")

    def action_answer(self, answer: str) -> None:
        """Answer, if there is such a row."""
        found = next((known for known in self._rows if known == answer), None)
        if found is not None:
            self.dismiss(None if found == "cancel" else found)


def _row(key: str, word: str, does: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style=colours.KEY, width=2)
    table.add_column(style=colours.BRIGHT, width=8)
    table.add_column(style=colours.TEXT)
    table.add_row(key, word, does)
    return table
