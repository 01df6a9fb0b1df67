"""The dialog of one layer: its newest readings, each with unit and definition."""

from __future__ import annotations

import textwrap
from typing import ClassVar

from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.layer_names import block_of, find_again
from tui_descent.dashboard.text.numbers import plural, scientific, with_commas
from tui_descent.dashboard.text.safe_text import safe

# By metric: symbol, unit, definition. Unknown metrics are shown by their name.
DEFINITIONS: dict[str, tuple[str, str, str]] = {
    "grad_norm": ("‖∂L/∂W‖", "loss/weight", "L2 norm of the (clipped) weight gradient"),
    "grad_rms": (
        "rms ∂L/∂W",
        "loss/weight",
        "‖∂L/∂W‖ / √(number of weights)",
    ),
    "weight_norm": ("‖W‖", "weight", "L2 norm of the layer's weights"),
    "update_norm": ("‖ΔW‖", "weight", "L2 norm of the step's update"),
    "update_ratio": ("‖ΔW‖/‖W‖", "none", "of a weight matrix; usual: 1e-4 to 1e-2"),
    "backprop_factor": ("‖∂L/∂h‖ in/out", "none", "chain-rule factor; healthy near 1"),
    "grad_cosine": ("cos(g, prev g)", "none", "1: same direction, 0: noise, -1: reversed"),
    "dead_fraction": ("dead", "share", "units with slope 0 on all (256+) samples"),
    "saturated_fraction": ("saturated", "share", "outputs with slope < 1/10 of the largest"),
    "activation_mean": ("mean a", "activation", "mean of the activation's outputs"),
    "activation_std": ("std a", "activation", "std of the activation's outputs"),
}

ORDER = {metric: n for n, metric in enumerate(DEFINITIONS)}

LOW_SCREEN, NARROW_SCREEN = 30, 100
NARROWEST = 42  # cells for a definition on a screen of 80 columns

# Why a layer has no gradient.
IDLE: dict[str, str] = {
    "frozen": "its weights are frozen",
    "unused": "no gradient: the loss does not depend on its weights, or the graph is cut (detach)",
}


class LayerDialog(Dialog[None]):
    """Shows new readings as they arrive; the arrow keys go to the neighbouring layers."""

    hints = "↑ ↓ next layer · escape closes"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,q", "cancel", show=False),
        Binding("up", "go(1)", show=False),
        Binding("down", "go(-1)", show=False),
    ]

    def __init__(self, bridge: Bridge, layer: int) -> None:
        super().__init__()
        self._bridge, self._layer = bridge, layer
        self._layers = bridge.history.layers

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide") as box:
            box.can_focus = False
            yield Static(id="readings")

    def on_mount(self) -> None:
        """Refresh four times a second; nobody could read numbers that change faster."""
        self._refresh()
        self.set_interval(0.25, self._refresh)

    def action_go(self, up: int) -> None:
        """Go `up` layers towards the output; negative values go towards the input."""
        self._layer = min(max(self._layer + up, 0), len(self._layers) - 1)
        self._refresh()

    def _refresh(self) -> None:
        history = self._bridge.history
        if history.layers is not self._layers:
            index = find_again(self._layer, self._layers, history.layers)
            if index is None:
                self.dismiss(None)
                return
            self._layer, self._layers = index, history.layers
        layer, readings = self._layers[self._layer], history.readings
        if readings is not None and readings.segment != history.segment:
            readings = None  # the readings are from before an undo or redo
        box = self.query_one(VerticalScroll)
        box.border_title = safe(layer.name, 60).replace("[", "(")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=colours.DIM, expand=True)
        # On low screens each reading has one row, and its definition is cut.
        low, narrow = self.size.height < LOW_SCREEN, self.size.width < NARROW_SCREEN
        widths = {"reading": 16, "value": 8} | ({} if narrow else {"unit": 11})
        for title, wide in widths.items():
            table.add_column(title, justify="right" if title == "value" else "left", no_wrap=True, min_width=wide)
        table.add_column("definition", no_wrap=low, overflow="ellipsis", ratio=1)

        def row(name: str, value: str, unit: str, what: str, style: Style | None = None) -> None:
            cells = [name, value, *([] if narrow else [unit]), what]
            table.add_row(*(Text(cell) for cell in cells), style=style)  # a str would be taken for markup

        block = block_of(layer) or "not in a block"
        about = f"{safe(layer.kind, 40)}, {with_commas(layer.params)} parameters, {safe(block)}"
        row("layer", str(self._layer), "", about)
        statuses = readings.statuses if readings else []
        status: str = statuses[self._layer] if self._layer < len(statuses) else "used"
        idle = IDLE.get(status)
        if layer.not_measured is not None:
            status, idle = "n/a", safe(layer.not_measured, 100)
            row("not measured", status, "", "\n".join(textwrap.wrap(idle, NARROWEST)), colours.DIM)
        elif idle is not None:
            row("status", status, "", idle, colours.DIM)
        tiers = history.newest_readings.of(history.segment)
        oldest = readings.step if readings else 0
        for metric in sorted(tiers, key=lambda metric: ORDER.get(metric, len(ORDER))):
            symbol, unit, what = DEFINITIONS.get(metric, (safe(metric, 30), "", ""))
            taken = tiers[metric]
            values = taken.values[metric]
            value = values[self._layer] if self._layer < len(values) else None
            if value is None and idle is not None:
                row(symbol, status, unit, what, colours.DIM)
                continue
            if value is None:
                what = "not defined for this layer" if low else f"not defined for this layer: {what}"
            elif readings is not None and taken.step != readings.step:
                oldest = min(oldest, taken.step)
                what = what if low else f"at step {with_commas(taken.step)}: {what}"
            row(symbol, scientific(value), unit, what)
        if readings is None:
            row("measured at", "–", "step", "no reading since the undo or redo")
        else:
            age = readings.ages[self._layer] if self._layer < len(readings.ages) else 0
            note = _when_measured(age, oldest=oldest if low else readings.step, newest=readings.step)
            row("measured at", with_commas(readings.step), "step", note)
        self.query_one("#readings", Static).update(table)


def _when_measured(age: int, *, oldest: int, newest: int) -> str:
    """Which values are older than the newest reading. `age`: by how many steps those of the weights are."""
    if age:
        return f"‖W‖, ‖ΔW‖ and their ratio: measured {plural(age, 'step')} earlier"
    return f"newest; other values since step {with_commas(oldest)}" if oldest < newest else "the newest reading"
