"""The activation dialog: the list of activations; of the highlighted one formula, derivative, curves, where it is used.

Below the curves: how often each pre-activation z occurs now.
"""

from __future__ import annotations

import textwrap

from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.activation_functions import ActivationFunction
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import FindList
from tui_descent.dashboard.pictures import lens
from tui_descent.dashboard.text.numbers import plural
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.protocol.events import LensTaken
from tui_descent.protocol.layer_names import in_words
from tui_descent.protocol.lens import ActivationPart
from tui_descent.scenario.knobs import KNOBS

# Formula, derivative, and where it is used.
FORMULAS: dict[str, tuple[str, str, str]] = {
    "relu": (
        "max(0, z)",
        "1 if z > 0, else 0",
        "hidden layers of most nets; a unit whose z stays below 0 is dead",
    ),
    "leaky_relu": ("max(a·z, z), a = {slope:g}", "1 if z > 0, else a", "GANs; like relu, but no unit dies"),
    "gelu": ("z·Φ(z)", "Φ(z) + z·φ(z)", "transformers (BERT, GPT-2); a smooth relu"),
    "silu": (
        "z·σ(z)",
        "σ(z)·(1 + z·(1 − σ(z)))",
        "convolutional nets (EfficientNet); times a gate, LLaMA",
    ),
    "sigmoid": (
        "1 / (1 + e⁻ᶻ)",
        "σ(z)·(1 − σ(z)) ≤ 1/4",
        "gates (LSTM), outputs from 0 to 1; in deep stacks the gradient vanishes",
    ),
    "tanh": ("tanh z", "1 − tanh² z ≤ 1", "recurrent nets; it saturates at both ends"),
    "elu": ("z if z > 0, else eᶻ − 1", "1 if z > 0, else eᶻ", "hidden layers; no unit dies, and the mean is near 0"),
    "softplus": ("ln(1 + eᶻ)", "σ(z)", "positive outputs, such as a variance; a smooth relu"),
    "identity": ("z", "1", "linear nets; without a nonlinearity, many layers do no more than one"),
}
OTHER_ROWS = 22  # rows of the screen that the picture needs, when there are modules to name below it
MOST_ROWS = 18  # for the names of modules
REFRESH_S = 0.25


class ActivationDialog(Dialog[str]):
    """Answers with the chosen name.

    `slope` is the slope of leaky_relu for z < 0 in this run. `acts_on` are the modules of a user's net that will
    change, `left_alone` those that will not, with the reason. `advised` is what the diagnosis advises, if anything.
    `asked` is the layer whose pre-activations the run screen requests while this dialog is open.
    """

    hints = "↑ ↓ or type · enter blends over 50 steps · escape cancels"

    def __init__(
        self,
        bridge: Bridge,
        now: str,
        target: str,
        *,
        asked: str = "",
        slope: float = 0.01,
        acts_on: tuple[str, ...] = (),
        left_alone: tuple[tuple[str, str], ...] = (),
        advised: str = "",
    ) -> None:
        super().__init__()
        self._bridge, self._asked = bridge, asked
        self._now, self._target, self._acts_on, self._left_alone = now, target, acts_on, left_alone
        self._slope, self._advised = slope, advised
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Build the dialog with the advised activation highlighted, or the current one."""
        where = "of all blocks" if self._target == "all" else f"of {safe(self._target, 40)}"
        if self._acts_on and self._target == "all":
            where = f"of {plural(len(self._acts_on), 'hidden module')}"
        choices = KNOBS["activation"].choices
        with Vertical(classes="dialog activation") as box:
            box.border_title = f"Activation {where.replace('[', '(')}"
            with Horizontal():
                rows = (_row(name, self._now, advised=name == self._advised) for name in choices)
                choice_list = FindList(*(Option(row, id=name) for name, row in zip(choices, rows, strict=True)))
                yield choice_list
                with Vertical():
                    yield Static(id="formulas")
                    yield Static(id="curves")
                    yield Static(id="use", markup=False)
            yield Static("", id="modules", classes="dim", markup=False)
            now = self._advised or self._now.split(" ")[0].split("(")[0]
            choice_list.highlighted = choices.index(now) if now in choices else 0

    def on_mount(self) -> None:
        """Redraw as new pre-activations are counted."""
        self.query_one("#modules").display = bool(self._acts_on)
        self.set_interval(REFRESH_S, self._draw)

    def on_resize(self) -> None:
        """Draw in the new size, once it is known."""
        if self._acts_on:
            self.query_one("#modules", Static).update(self._modules(self.query_one(".dialog").content_size.width))
        self.call_after_refresh(self._draw)

    def _modules(self, width: int) -> str:
        """Which modules will change and which will not, in as many rows as the screen has room for."""
        rows = min(max(2, self.size.height - OTHER_ROWS), MOST_ROWS)
        count = f"changes {len(self._acts_on)}: "
        names = textwrap.wrap(", ".join(map(_module, self._acts_on)), max(40, width - len(count)))
        shown_left = min(len(self._left_alone), max(1, rows - len(names)))
        shown = min(len(names), rows - shown_left)
        lines = [(count if n == 0 else " " * len(count)) + names[n] for n in range(shown)]
        if shown < len(names):
            lines[-1] = f"{lines[-1].rstrip(',')} …"
        lines += [_left(name, reason, max(40, width)) for name, reason in self._left_alone[:shown_left]]
        if shown_left < len(self._left_alone):
            lines[-1] = f"keeps {len(self._left_alone) - shown_left + 1} more gates and outputs"
        return "\n".join(lines)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show the highlighted activation."""
        self._draw()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the chosen name."""
        self.dismiss(event.option.id)

    def _draw(self) -> None:
        option = self.query_one(OptionList).highlighted_option
        name = option.id if option is not None else None
        panel = self.query_one("#curves", Static)
        taken = self._bridge.history.lens.get(self._asked)
        wanted = name, panel.content_size, taken
        if name is None or wanted == self._drawn:
            return
        self._drawn = wanted
        formula, derivative, use = FORMULAS.get(name, ("", "", ""))
        text = Text("f(z)  = ", style=_colour(lens.F)).append(formula.format(slope=self._slope), colours.BRIGHT)
        text.append("\nf′(z) = ", _colour(lens.SLOPE)).append(derivative, colours.BRIGHT)
        self.query_one("#formulas", Static).update(text)
        below = Text("used in ", style=colours.DIM).append(use, colours.TEXT)
        if taken is not None and taken.histogram is not None:
            layer = shorten(safe(in_words(taken.layer), 200), 22)
            below.append(f"\nbars: how often z occurs in {layer}", colours.DIM)
        self.query_one("#use", Static).update(below)
        panel.update(self._curves(name, taken, *panel.content_size))

    def _curves(self, name: str, taken: LensTaken | None, width: int, height: int) -> Segments:
        part = ActivationPart(name=name, parameters=(self._slope,) if name == "leaky_relu" else ())
        histogram = taken.histogram if taken is not None else None
        segments: list[Segment] = []
        for row in lens.draw_choice(ActivationFunction((part,)), histogram, width, height):
            segments += [*row, Segment.line()]
        return Segments(segments)


def _colour(rgb: tuple[int, int, int]) -> Style:
    return Style(bold=True, color="#{:02x}{:02x}{:02x}".format(*rgb))


def _module(name: str) -> str:
    return shorten(safe(name, 200), 36)


def _left(name: str, reason: str, width: int) -> str:
    """`keeps main.4: the net's output`."""
    short = safe(reason.partition(" (")[0], 40)
    return f"keeps {shorten(safe(name, 200), width - 8 - len(short))}: {short}"


def _row(name: str, now: str, *, advised: bool) -> Text:
    text = Text(f"{'●' if now.startswith(name) else ' '} {name:<11}", no_wrap=True, overflow="ellipsis")
    return text.append("← advised" if advised else "", colours.KEY)
