"""The dialog for choosing a knob's value from a list. The list may also offer to set related knobs."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import FindList, ValueRow
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.scenario.knobs import KNOBS, parse
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
    "layer": "LayerNorm: mean 0 and variance 1 per sample",
    "rms": "RMSNorm: root mean square 1 per sample",
}


class ChoiceDialog(Dialog[str]):
    """Answers with the chosen value and the chosen options, or with `knob:NAME` for one of `more_knobs`.

    `lr` is the current learning rate, if known; `spec` is the optimizer in the scenario. If the knob itself is not
    available, `unavailable` says why, and only `more_knobs` can be chosen. `advised` is the value that the diagnosis
    advises, with its place and way, as in `layer,where=mid,way=instant`; the dialog begins with it.
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
        advised: str = "",
    ) -> None:
        super().__init__()
        self._knob, self._now, self._target, self._more_knobs = KNOBS[knob], now, target, more_knobs
        self._unavailable = unavailable
        self._lr, self._spec, self._advised = lr, spec or OptimizerSpec(), advised

    def compose(self) -> ComposeResult:
        """Build the dialog with the current value highlighted."""
        where = "" if self._target == "all" else f" of {safe(self._target, 40)}"
        choices = () if self._unavailable else self._knob.choices
        with Vertical(classes="dialog choice") as box:
            box.border_title = f"{self._knob.title.capitalize()}{where}".replace("[", "(")
            fields = " · tab where and way" if self._knob.places else ""
            self.hints = f"↑ ↓ or type · enter applies{fields} · escape cancels"
            rows = [Option(self._row(name), id=name) for name in choices]
            rows += [Option(Text(f"  set {KNOBS[k].title} …"), id=f"{OTHER}{k}") for k in self._more_knobs]
            yield FindList(*rows)
            about = self._unavailable or self._knob.acts
            yield Static(safe(f"{about[0].upper()}{about[1:]}"), classes="dim acts", markup=False)
            if self._knob.places:
                advised = parse(f"{self._knob.name}={self._advised}") if self._advised else None
                yield ValueRow("where", self._knob.places, advised.where if advised else None)
                yield ValueRow("way", self._knob.ways, advised.way if advised else None)

    def on_mount(self) -> None:
        """Highlight what is advised, or the current value."""
        choices = () if self._unavailable else self._knob.choices
        first = self._advised.partition(",")[0]
        wanted = first if first in choices else self._now.split(" ")[0]
        self.query_one(FindList).highlighted = choices.index(wanted) if wanted in choices else 0

    def on_key(self, event: events.Key) -> None:
        """Enter in a row of values applies, too."""
        if event.key == "enter" and isinstance(self.focused, ValueRow):
            event.stop()
            self.query_one(FindList).action_select()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen value."""
        self._answer(event.option.id or "")

    def _answer(self, choice: str) -> None:
        rows = zip(("where", "way"), self.query(ValueRow), strict=False)
        options = [f"{name}={row.value}" for name, row in rows if row.value is not None]
        is_other = choice.startswith(OTHER) or choice == "none"
        self.dismiss(choice if is_other else ",".join([choice, *options]))

    def _row(self, name: str) -> Text:
        mark = "●" if name == self._now.split(" ")[0] else " "
        advised = "  ← advised" if name == self._advised.partition(",")[0] else ""
        return Text(f"{mark} {name:<11}{self._about(name)}{advised}", no_wrap=True, overflow="ellipsis")

    def _about(self, name: str) -> str:
        if self._knob.name == "optimizer" and self._now in OPTIMIZERS:
            try:
                return f"lr {map_rate(self._now, name, float(self._lr), known=known_rate(self._spec, name)).text}"
            except ValueError:  # the learning rate is not known yet
                return OPTIMIZERS[name].title
        return {"init": INITS, "norm": NORMS}.get(self._knob.name, {}).get(name, "")
