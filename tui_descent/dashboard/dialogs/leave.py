"""Leaving a run that is still going on."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from tui_descent.dashboard.dialogs.dialog import Dialog

TEXT = """\
[b $primary]s[/]          stop: the step in progress is finished, the run
           ends and stays recorded; then this screen closes

[b $primary]escape[/]  [b $primary]c[/]  stay: the run goes on, nothing changes"""


class LeaveDialog(Dialog[bool]):
    """True is stop."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("s", "stop", show=False), Binding("c,q", "away", show=False)]

    def compose(self) -> ComposeResult:
        """The two ways and what each does."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Leave this run?"
            yield Static(TEXT)

    def action_stop(self) -> None:
        """End the run."""
        self.dismiss(True)
