"""The activation dialog lists each activation with its formula, its derivative and where it is used."""

from __future__ import annotations

import textwrap

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import FindList
from tui_descent.dashboard.text.numbers import plural
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.scenario.knobs import KNOBS

# Formula, derivative, and where it is used.
FORMULAS: dict[str, tuple[str, str, str]] = {
    "relu": ("max(0, z)", "1 if z > 0, else 0", "hidden layers; a unit whose z stays below 0 is dead"),
    "leaky_relu": ("max(a·z, z), a = {slope:g}", "1 if z > 0, else a", "like relu, but no unit dies"),
    "gelu": ("z·Φ(z)", "Φ(z) + z·φ(z)", "transformers"),
    "silu": ("z·σ(z)", "σ(z)·(1 + z·(1 − σ(z)))", "convolutional nets, language models"),
    "sigmoid": ("1 / (1 + e⁻ᶻ)", "σ(z)·(1 − σ(z)) ≤ 1/4", "gates, outputs; in deep stacks the gradient vanishes"),
    "tanh": ("tanh z", "1 − tanh² z ≤ 1", "recurrent nets; saturates at both ends"),
    "elu": ("z if z > 0, else eᶻ − 1", "1 if z > 0, else eᶻ", "hidden layers; mean near 0"),
    "softplus": ("ln(1 + eᶻ)", "σ(z)", "positive outputs; a smooth relu"),
    "identity": ("z", "1", "no nonlinearity"),
}
WIDTH = 66  # columns inside the dialog
OTHER_ROWS = 18  # rows of the screen that the list of activations and the borders take


class ActivationDialog(Dialog[str]):
    """Answers with the chosen name.

    `slope` is the slope of leaky_relu for z < 0 in this run. `acts_on` are the modules of a user's net that will
    change, `left_alone` those that will not, with the reason. `advised` is what the diagnosis advises, if anything.
    """

    def __init__(
        self,
        now: str,
        target: str,
        *,
        slope: float = 0.01,
        acts_on: tuple[str, ...] = (),
        left_alone: tuple[tuple[str, str], ...] = (),
        advised: str = "",
    ) -> None:
        super().__init__()
        self._now, self._target, self._acts_on, self._left_alone = now, target, acts_on, left_alone
        self._slope, self._advised = slope, advised

    def compose(self) -> ComposeResult:
        """Build the dialog with the current activation highlighted."""
        where = "of all blocks" if self._target == "all" else f"of {safe(self._target, 40)}"
        if self._acts_on and self._target == "all":
            where = f"of {plural(len(self._acts_on), 'hidden module')}"
        choices = KNOBS["activation"].choices
        with Vertical(classes="dialog choice") as box:
            box.border_title = f"Activation {where.replace('[', '(')}"
            box.border_subtitle = "↑ ↓ or type · enter blends over 50 steps · escape cancels"
            yield Static(Text(f"  {'':<11}{'f(z)':<27}f′(z)"), classes="dim")
            rows = (_row(name, self._now, self._slope, advised=name == self._advised) for name in choices)
            choice_list = FindList(*(Option(row, id=name) for name, row in zip(choices, rows, strict=True)))
            yield choice_list
            yield Static("", id="use", classes="dim", markup=False)
            if self._acts_on:
                yield Static(self._modules(), classes="dim", markup=False)
            now = self._advised or self._now.split(" ")[0].split("(")[0]
            choice_list.highlighted = choices.index(now) if now in choices else 0

    def _modules(self) -> str:
        """Which modules will change and which will not, in as many rows as the screen has room for."""
        rows = max(2, self.app.size.height - OTHER_ROWS)
        count = f"  changes {len(self._acts_on)}: "
        names = textwrap.wrap(", ".join(map(_module, self._acts_on)), WIDTH - len(count))
        shown_left = min(len(self._left_alone), max(1, rows - len(names)))
        shown = min(len(names), rows - shown_left)
        lines = [(count if n == 0 else " " * len(count)) + names[n] for n in range(shown)]
        if shown < len(names):
            lines[-1] = f"{lines[-1].rstrip(',')} …"
        lines += [_left(name, reason) for name, reason in self._left_alone[:shown_left]]
        if shown_left < len(self._left_alone):
            lines[-1] = f"  keeps {len(self._left_alone) - shown_left + 1} more gates and outputs"
        return "\n".join(lines)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show where the highlighted activation is used."""
        use = FORMULAS.get(event.option.id or "", ("", "", ""))[2]
        self.query_one("#use", Static).update(f"\n  {use}")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen name."""
        self.dismiss(event.option.id)


def _module(name: str) -> str:
    return shorten(safe(name, 200), 36)


def _left(name: str, reason: str) -> str:
    """`keeps main.4: the net's output`."""
    short = safe(reason.partition(" (")[0], 40)
    return f"  keeps {shorten(safe(name, 200), WIDTH - 10 - len(short))}: {short}"


def _row(name: str, now: str, slope: float, *, advised: bool) -> Text:
    formula, derivative, _ = FORMULAS.get(name, ("", "", ""))
    formula = formula.format(slope=slope)
    mark = "●" if now.startswith(name) else " "
    hint = "  ← advised" if advised else ""
    return Text(f"{mark} {name:<11}{formula:<27}{derivative}{hint}", no_wrap=True, overflow="ellipsis")
