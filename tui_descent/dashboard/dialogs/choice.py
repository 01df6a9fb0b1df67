"""The dialog for choosing a knob's value from a list. The list may also offer to set related knobs."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.scenario.knobs import KNOBS, KnobSpec, parse
from tui_descent.scenario.optimizers import OPTIMIZERS, known_rate, map_rate
from tui_descent.scenario.spec import OptimizerSpec

OTHER = "knob:"  # an answer that starts with this is the name of a related knob to set
INITS = {
    "he": "N(0, 2/in); for relu and similar",
    "xavier": "N(0, 2/(in + out)); for tanh and sigmoid",
    "lecun": "N(0, 1/in); keeps the variance of a linear layer",
    "orthogonal": "a rotation: all singular values are 1",
    "normal": "N(0, 0.02²), independent of the width",
}
NORMS = {
    "none": "no normalisation",
    "layer": "LayerNorm: mean 0 and variance 1 over the features",
    "rms": "RMSNorm: root mean square 1 over the features",
}


class ChoiceDialog(Dialog[str]):
    """Answers with the chosen value and the options typed in the field, or with `knob:NAME` for one of `more_knobs`.

    `lr` is the current learning rate, if known; `spec` is the optimizer in the scenario. If the knob itself is not
    available, `unavailable` says why, and only `more_knobs` can be chosen.
    """

    def __init__(
        self,
        knob: str,
        now: str,
        target: str,
        *,
        more_knobs: tuple[str, ...] = (),
        lr: str = "",
        spec: OptimizerSpec | None = None,
        unavailable: str = "",
    ) -> None:
        super().__init__()
        self._knob, self._now, self._target, self._more_knobs = KNOBS[knob], now, target, more_knobs
        self._unavailable = unavailable
        self._lr, self._spec = lr, spec or OptimizerSpec()

    def compose(self) -> ComposeResult:
        """Build the dialog with the current value highlighted."""
        where = "" if self._target == "all" else f" of {safe(self._target, 40)}"
        choices = () if self._unavailable else self._knob.choices
        with Vertical(classes="dialog choice") as box:
            box.border_title = f"{self._knob.title.capitalize()}{where}".replace("[", "(")
            options = "tab for options · " if self._knob.places else ""
            box.border_subtitle = f"enter applies · {options}escape cancels"
            rows = [Option(self._row(name), id=name) for name in choices]
            rows += [Option(Text(f"  set {KNOBS[k].title} …"), id=f"{OTHER}{k}") for k in self._more_knobs]
            choice_list = OptionList(*rows)
            yield choice_list
            about = self._unavailable or self._knob.acts
            yield Static(safe(f"{about[0].upper()}{about[1:]}"), classes="dim acts", markup=False)
            if self._knob.places:
                yield Input(max_length=60, placeholder=_options(self._knob))
                yield Static("", classes="why", markup=False)
            choice_list.highlighted = choices.index(self._now) if self._now in choices else 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen value."""
        self._answer(event.option.id or "")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer with the highlighted value and the typed options."""
        self._answer(self._knob.choices[self.query_one(OptionList).highlighted or 0])

    def _answer(self, choice: str) -> None:
        typed = self.query_one(Input).value.replace(",", " ").split() if self._knob.places else []
        text = ",".join([choice, *typed])
        try:
            parse(f"{self._knob.name}={text}") if typed else None
        except ValueError as error:
            self.query_one(".why", Static).update(safe(str(error)))
            return
        self.dismiss(text)

    def _row(self, name: str) -> Text:
        mark = "●" if name == self._now else " "
        return Text(f"{mark} {name:<11}{self._about(name)}", no_wrap=True, overflow="ellipsis")

    def _about(self, name: str) -> str:
        if self._knob.name == "optimizer" and self._now in OPTIMIZERS:
            try:
                return f"lr {map_rate(self._now, name, float(self._lr), known=known_rate(self._spec, name)).text}"
            except ValueError:  # the learning rate is not known yet
                return OPTIMIZERS[name].title
        return {"init": INITS, "norm": NORMS}.get(self._knob.name, {}).get(name, "")


def _options(knob: KnobSpec) -> str:
    """The options that can be typed; if left out, the trainer picks values that suit the net."""
    return f"where={'|'.join(knob.places)} way={'|'.join(knob.ways)}"
