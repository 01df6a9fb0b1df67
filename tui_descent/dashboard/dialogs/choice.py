"""Picking one of a knob's words, or going on to a number of another knob that belongs to it."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.scenario.knobs import KNOBS, Knob, parse
from tui_descent.scenario.optimizers import OPTIMIZERS, known_rate
from tui_descent.scenario.optimizers import map_rate as mapped
from tui_descent.scenario.spec import OptimizerSpec

OTHER = "knob:"  # begins the answer that names another knob
INITS = {
    "he": "N(0, 2/in); for relu and its kin",
    "xavier": "N(0, 2/(in + out)); for tanh and sigmoid",
    "lecun": "N(0, 1/in); keeps the variance of a linear layer",
    "orthogonal": "a rotation: all singular values 1",
    "normal": "N(0, 0.02²), whatever the width",
}
NORMS = {
    "none": "no normalisation",
    "layer": "LayerNorm: mean 0 and variance 1 over the features",
    "rms": "RMSNorm: only the root mean square, no mean taken off",
}


class ChoiceDialog(Dialog[str]):
    """Answers with the chosen word and what was typed behind it, or with `knob:NAME` for another knob of the same key.

    `lr` is the learning rate now, where it is known; `spec` what the scenario says of its optimizer.
    """

    def __init__(
        self,
        knob: str,
        now: str,
        target: str,
        *,
        also: tuple[str, ...] = (),
        lr: str = "",
        spec: OptimizerSpec | None = None,
    ) -> None:
        super().__init__()
        self._knob, self._now, self._target, self._also = KNOBS[knob], now, target, also
        self._lr, self._spec = lr, spec or OptimizerSpec()

    def compose(self) -> ComposeResult:
        """The present one is where the list begins."""
        where = "" if self._target == "all" else f" of {plain(self._target, 40)}"
        choices = self._knob.choices
        with Vertical(classes="dialog choice") as box:
            box.border_title = f"{self._knob.title.capitalize()}{where}".replace("[", "(")
            more = "tab where and how · " if self._knob.places else ""
            box.border_subtitle = f"enter turns it · {more}escape leaves it"
            rows = [Option(self._row(name), id=name) for name in choices]
            rows += [Option(Text(f"  set {KNOBS[k].title} …"), id=f"{OTHER}{k}") for k in self._also]
            choice_list = OptionList(*rows)
            yield choice_list
            yield Static(f"{self._knob.acts[0].upper()}{self._knob.acts[1:]}", classes="dim acts", markup=False)
            if self._knob.places:
                yield Input(max_length=60, placeholder=_ways(self._knob))
                yield Static("", classes="why", markup=False)
            choice_list.highlighted = choices.index(self._now) if self._now in choices else 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter in the list."""
        self._answer(event.option.id or "")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in the field."""
        self._answer(self._knob.choices[self.query_one(OptionList).highlighted or 0])

    def _answer(self, choice: str) -> None:
        typed = self.query_one(Input).value.replace(",", " ").split() if self._knob.places else []
        text = ",".join([choice, *typed])
        try:
            parse(f"{self._knob.name}={text}") if typed else None
        except ValueError as error:
            self.query_one(".why", Static).update(plain(str(error)))
            return
        self.dismiss(text)

    def _row(self, name: str) -> Text:
        sign = "●" if name == self._now else " "
        return Text(f"{sign} {name:<11}{self._about(name)}", no_wrap=True, overflow="ellipsis")

    def _about(self, name: str) -> str:
        if self._knob.name == "optimizer" and self._now in OPTIMIZERS:
            try:
                return f"lr {mapped(self._now, name, float(self._lr), known=known_rate(self._spec, name)).text}"
            except ValueError:  # no rate is known yet
                return OPTIMIZERS[name].title
        return {"init": INITS, "norm": NORMS}.get(self._knob.name, {}).get(name, "")


def _ways(knob: Knob) -> str:
    """What may be typed behind the word; without it the run chooses as it suits the net."""
    return f"where={'|'.join(knob.places)} way={'|'.join(knob.ways)}"
