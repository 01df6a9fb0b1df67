"""The dialog for typing a number: a knob's value or a number of steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Static

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS, check, new_value
from tui_descent.scenario.optimizers import all_rates_text

MAX_STEPS = 10_000_000


class NumberDialog(Dialog[str]):
    """Answers with the typed text.

    If `check` raises `ValueError` for it, the dialog shows the reason and stays open. `result` says what the typed text
    would do, while it is being typed. With several `fields`, their texts are joined by slashes. `advised` is in
    the field at first; typing replaces it.
    """

    hints = "enter applies · escape cancels"

    def __init__(
        self,
        title: str,
        hint: str,
        check: Callable[[str], object],
        result: Callable[[str], str] | None = None,
        *,
        fields: tuple[str, ...] = ("",),
        advised: str = "",
    ) -> None:
        super().__init__()
        self._advised = advised
        self._title, self._hint, self._check, self._result, self._fields = title, hint, check, result, fields

    def compose(self) -> ComposeResult:
        """The hint, the input field, and room for an error."""
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Static(self._hint, classes="dim", markup=False)
            for name in self._fields:
                if name:
                    yield Static(name, classes="dim", markup=False)
                yield Input(self._advised, max_length=40)
            yield Static("", classes="why", markup=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show what the text would do, if it is valid."""
        if self._result is None:
            return
        try:
            self._check(self._text())
            text = self._result(self._text())
        except ValueError:
            text = ""
        self.query_one(".why", Static).update(safe(text))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Check the text; close if it is valid. With several fields, go on to the next empty one."""
        empty = [field for field in self.query(Input) if not field.value.strip()]
        if empty and len(self._fields) > 1:
            empty[0].focus()
            return
        text = self._text()
        try:
            self._check(text)
        except ValueError as error:
            self.query_one(".why", Static).update(safe(str(error)))
            return
        self.dismiss(text)

    def _text(self) -> str:
        """The typed text; that of several fields joined by slashes."""
        return "/".join(field.value.strip() for field in self.query(Input))


def _field_names(kind: str) -> tuple[str, ...]:
    return ("first (of the gradient)", "second (of its square)") if kind == "pair" else ("",)


def knob_dialog(
    knob: str, now: str, rates: Mapping[str, Sequence[float]] | None = None, *, advised: str = ""
) -> NumberDialog:
    """Dialog to type a knob's value, in any form the knob accepts. It begins with the value that is `advised`.

    `rates` are the learning rates of several optimizers or parameter groups. All are multiplied by the same factor.
    """
    row = KNOBS[knob]
    now = all_rates_text(rates) if rates else now
    hint = f"now {safe(now or '…', 60)}; allowed: {row.values}{f'; advised: {advised}' if advised else ''}"
    result = functools.partial(_scaled_rates, rates) if rates else None
    return NumberDialog(
        row.title.capitalize(),
        hint,
        lambda text: check(TurnKnob(knob=knob, value=text)),
        result,
        fields=_field_names(row.kind),
        advised=advised,
    )


def _scaled_rates(rates: Mapping[str, Sequence[float]], text: str) -> str:
    """All rates after a change of the learning rate. An exact rate becomes the rate of the first group whose rate is
    not 0.
    """
    first = next((rate for groups in rates.values() for rate in groups if rate), 0.0)
    factor = new_value(text, first) / first if first else 1.0
    return f"sets {all_rates_text({name: [rate * factor for rate in groups] for name, groups in rates.items()})}"


def steps_dialog() -> NumberDialog:
    """Dialog to type the number of steps to run before the next pause."""
    return NumberDialog("Run N steps, then pause", "a whole number of steps, such as 100", _steps)


def _steps(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_STEPS):
        raise ValueError(f'found "{text}"; allowed: a whole number from 1 to {MAX_STEPS:,}')
