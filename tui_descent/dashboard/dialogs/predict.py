"""The dialog that asks what a change will do to the loss, before the change is made."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import ClickList
from tui_descent.dashboard.prediction import GUESSES, Guess
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.telemetry.story import EFFECT_STEPS


class PredictDialog(Dialog[Guess | Literal["no guess"]]):
    """Answers with the guess, or with `no guess` if the change is to be made without this and further questions.
    `change` is the change, as in `residual=on`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("h", "no_questions", show=False)]
    hints = "↑ ↓ choose · enter answers · escape makes no change"

    def __init__(self, change: str) -> None:
        super().__init__()
        self._change = change

    def compose(self) -> ComposeResult:
        """The question and the possible answers."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Predict, then see"
            yield Static(f"{safe(self._change, 60)}: what will the loss do within {EFFECT_STEPS} steps?", markup=False)
            yield ClickList(*(Option(f"it {guess}", id=guess) for guess in GUESSES))
            yield Static("h makes the change and asks no more questions", classes="dim acts", markup=False)

    def on_mount(self) -> None:
        """Highlight the first answer."""
        self.query_one(OptionList).highlighted = 0

    def action_no_questions(self) -> None:
        """Make the change without a guess."""
        self.dismiss("no guess")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen guess."""
        self.dismiss(GUESSES[event.option_index])
