"""One number typed: an exact learning rate, or how many steps."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS, check

MAX_STEPS = 10_000_000


class NumberDialog(Dialog[str]):
    """Answers with the text when `checked` takes it; otherwise says why not and stays."""

    def __init__(self, title: str, hint: str, checked: Callable[[str], object]) -> None:
        super().__init__()
        self._title, self._hint, self._checked = title, hint, checked

    def compose(self) -> ComposeResult:
        """The question, the field, and room for the reason."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            box.border_subtitle = "enter sends · escape leaves it"
            yield Static(self._hint, classes="dim", markup=False)
            yield Input(max_length=40)
            yield Static("", classes="why", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter."""
        text = event.value.strip()
        try:
            self._checked(text)
        except ValueError as error:
            self.query_one(".why", Static).update(plain(str(error)))
            return
        self.dismiss(text)


def rate_dialog(now: str) -> NumberDialog:
    """An exact learning rate, in every form the knob takes."""
    hint = f"now {plain(now, 40)}; a number > 0 such as 0.03 or 3e-4, or *2, /10 relative to now"
    return NumberDialog("Learning rate", hint, lambda text: check(TurnKnob(knob="lr", value=text)))


def knob_dialog(knob: str, now: str) -> NumberDialog:
    """An exact value of a knob, in every form it takes."""
    row = KNOBS[knob]
    hint = f"now {plain(now or '…', 40)}; {row.values}"
    return NumberDialog(row.title.capitalize(), hint, lambda text: check(TurnKnob(knob=knob, value=text)))


def steps_dialog() -> NumberDialog:
    """How many steps to make before pausing."""
    return NumberDialog("Make N steps, then pause", "a whole number of steps, such as 100", _steps)


def _steps(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_STEPS):
        raise ValueError(f'found "{text}"; allowed: a whole number from 1 to {MAX_STEPS:,}')
