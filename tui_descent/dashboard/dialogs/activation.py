"""The activation dialog lists each activation with its formula, its derivative and where it is used."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.scenario.knobs import KNOBS

# Formula, derivative, and where it is used.
FORMULAS: dict[str, tuple[str, str, str]] = {
    "relu": ("max(0, z)", "1 if z > 0, else 0", "hidden layers; a unit whose z stays below 0 is dead"),
    "leaky_relu": ("max(a·z, z), a = 0.01", "1 if z > 0, else a", "like relu, but no unit dies"),
    "gelu": ("z·Φ(z)", "Φ(z) + z·φ(z)", "transformers"),
    "silu": ("z·σ(z)", "σ(z)·(1 + z·(1 − σ(z)))", "convolutional nets, language models"),
    "sigmoid": ("1 / (1 + e⁻ᶻ)", "σ(z)·(1 − σ(z)) ≤ 1/4", "gates, outputs; in deep stacks the gradient vanishes"),
    "tanh": ("tanh z", "1 − tanh² z ≤ 1", "recurrent nets; saturates at both ends"),
    "elu": ("z if z > 0, else eᶻ − 1", "1 if z > 0, else eᶻ", "hidden layers; mean near 0"),
    "softplus": ("ln(1 + eᶻ)", "σ(z)", "positive outputs; a smooth relu"),
    "identity": ("z", "1", "no nonlinearity"),
}


class ActivationDialog(Dialog[str]):
    """Answers with the chosen name."""

    def __init__(self, now: str, target: str) -> None:
        super().__init__()
        self._now, self._target = now, target

    def compose(self) -> ComposeResult:
        """Build the dialog with the current activation highlighted."""
        where = "of all blocks" if self._target == "all" else f"of {safe(self._target, 40)}"
        choices = KNOBS["activation"].choices
        with Vertical(classes="dialog choice") as box:
            box.border_title = f"Activation {where.replace('[', '(')}"
            box.border_subtitle = "enter blends over 50 steps · escape cancels"
            yield Static(Text(f"  {'':<11}{'f(z)':<27}f′(z)"), classes="dim")
            choice_list = OptionList(*(Option(_row(name, self._now), id=name) for name in choices))
            yield choice_list
            yield Static("", id="use", classes="dim", markup=False)
            now = self._now.split(" ")[0].split("(")[0]
            choice_list.highlighted = choices.index(now) if now in choices else 0

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show where the highlighted activation is used."""
        use = FORMULAS.get(event.option.id or "", ("", "", ""))[2]
        self.query_one("#use", Static).update(f"\n  {use}")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen name."""
        self.dismiss(event.option.id)


def _row(name: str, now: str) -> Text:
    formula, derivative, _ = FORMULAS.get(name, ("", "", ""))
    mark = "●" if now.startswith(name) else " "
    return Text(f"{mark} {name:<11}{formula:<27}{derivative}", no_wrap=True, overflow="ellipsis")
