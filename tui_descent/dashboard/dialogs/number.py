"""The dialog for typing a number: a knob's value or a number of steps."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS, check

MAX_STEPS = 10_000_000


class NumberDialog(Dialog[str]):
    """Answers with the typed text.

    If `check` raises `ValueError` for it, the dialog shows the reason and stays open.
    """

    def __init__(self, title: str, hint: str, check: Callable[[str], object]) -> None:
        super().__init__()
        self._title, self._hint, self._check = title, hint, check

    def compose(self) -> ComposeResult:
        """The hint, the input field, and room for an error."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            box.border_subtitle = "enter applies · escape cancels"
            yield Static(self._hint, classes="dim", markup=False)
            yield Input(max_length=40)
            yield Static("", classes="why", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Check the text; close if it is valid."""
        text = event.value.strip()
        try:
            self._check(text)
        except ValueError as error:
            self.query_one(".why", Static).update(safe(str(error)))
            return
        self.dismiss(text)


def knob_dialog(knob: str, now: str) -> NumberDialog:
    """Dialog to type a knob's value, in any form the knob accepts."""
    row = KNOBS[knob]
    hint = f"now {safe(now or '…', 40)}; allowed: {row.values}"
    return NumberDialog(row.title.capitalize(), hint, lambda text: check(TurnKnob(knob=knob, value=text)))


def steps_dialog() -> NumberDialog:
    """Dialog to type the number of steps to run before the next pause."""
    return NumberDialog("Run N steps, then pause", "a whole number of steps, such as 100", _steps)


def _steps(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_STEPS):
        raise ValueError(f'found "{text}"; allowed: a whole number from 1 to {MAX_STEPS:,}')
