"""One layer: of each of its readings the newest, with its unit and definition."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.table import Table
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.text.layer_names import moved, target_of
from tui_descent.dashboard.text.numbers import count, scientific
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.protocol.events import LayerStatus

# Metric: symbol, unit, definition. A metric of a later version is shown by its bare name.
DEFINITIONS: dict[str, tuple[str, str, str]] = {
    "grad_norm": ("‖∂L/∂W‖", "loss/weight", "L2 norm of the weights' gradient, clipped where clip is on"),
    "grad_rms": (
        "rms ∂L/∂W",
        "loss/weight",
        "‖∂L/∂W‖ / √ of the number of weights; in the heat-map",
    ),
    "weight_norm": ("‖W‖", "weight", "L2 norm of the layer's weights"),
    "update_norm": ("‖ΔW‖", "weight", "L2 norm of this step's update"),
    "update_ratio": ("‖ΔW‖/‖W‖", "none", "healthy between 1e-4 and 1e-2"),
    "backprop_factor": ("‖∂L/∂h‖ in/out", "none", "the chain rule's factor of this block; near 1 is healthy"),
    "grad_cosine": ("cos(g, g before)", "none", "near 0 noisy, +1 crawling, -1 bouncing between walls"),
    "dead_fraction": ("dead", "share", "units of slope 0 on the newest 256 samples or more"),
    "saturated_fraction": ("saturated", "share", "outputs where the slope is under a tenth of its greatest"),
    "activation_mean": ("mean a", "activation", "mean of the activation's outputs"),
    "activation_std": ("std a", "activation", "their standard deviation"),
}

ORDER = {metric: n for n, metric in enumerate(DEFINITIONS)}

LOW, NARROW = 30, 100

# Why a layer that exists has no gradient.
IDLE: dict[LayerStatus, str] = {
    "frozen": "its weights are not trained",
    "unused": "the loss of this step does not depend on it",
}


class LayerDialog(Dialog[None]):
    """Follows the run while it is open; up and down go to the next layer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,q", "away", show=False),
        Binding("up", "go(1)", show=False),
        Binding("down", "go(-1)", show=False),
    ]

    def __init__(self, bridge: Bridge, layer: int) -> None:
        super().__init__()
        self._bridge, self._layer = bridge, layer
        self._layers = bridge.history.layers

    def compose(self) -> ComposeResult:
        """A table."""
        with VerticalScroll(classes="dialog wide") as box:
            box.can_focus = False
            box.border_subtitle = "↑ ↓ next layer · escape back"
            yield Static(id="readings")

    def on_mount(self) -> None:
        """Four times a second is as fast as numbers are read."""
        self._refresh()
        self.set_interval(0.25, self._refresh)

    def action_go(self, up: int) -> None:
        """The next layer towards the output, or back."""
        self._layer = min(max(self._layer + up, 0), len(self._layers) - 1)
        self._refresh()

    def _refresh(self) -> None:
        history = self._bridge.history
        if history.layers is not self._layers:
            here = moved(self._layer, self._layers, history.layers)
            if here is None:
                self.dismiss(None)
                return
            self._layer, self._layers = here, history.layers
        layer, readings = self._layers[self._layer], history.readings
        if readings is not None and readings.segment != history.segment:
            readings = None  # of the stretch that was left
        box = self.query_one(VerticalScroll)
        box.border_title = plain(layer.name, 60).replace("[", "(")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=colours.DIM, expand=True)
        # Where rows are few each reading gets one. The definition has the room that the others leave: only it is cut.
        low, narrow = self.size.height < LOW, self.size.width < NARROW
        widths = {"reading": 16, "value": 8} | ({} if narrow else {"unit": 11})
        for title, wide in widths.items():
            table.add_column(title, justify="right" if title == "value" else "left", no_wrap=True, min_width=wide)
        table.add_column("what it is", no_wrap=low, overflow="ellipsis", ratio=1)

        def row(name: str, value: str, unit: str, what: str, style: Style | None = None) -> None:
            table.add_row(name, value, *([] if narrow else [unit]), what, style=style)

        block = target_of(layer) or "in no block"
        row("layer", str(self._layer), "", f"{plain(layer.kind, 40)}, {count(layer.params)} parameters, {plain(block)}")
        statuses = readings.statuses if readings else []
        status = statuses[self._layer] if self._layer < len(statuses) else "used"
        idle = IDLE.get(status)
        if idle is not None:
            row("status", status, "", idle, colours.DIM)
        tiers = history.tiers.of(history.segment)
        for metric in sorted(tiers, key=lambda metric: ORDER.get(metric, len(ORDER))):
            symbol, unit, what = DEFINITIONS.get(metric, (plain(metric, 30), "", ""))
            taken = tiers[metric]
            values = taken.values[metric]
            value = values[self._layer] if self._layer < len(values) else None
            if value is None and idle is not None:
                row(symbol, status, unit, what, colours.DIM)
                continue
            if value is None:
                what = f"does not apply here: {what}"
            elif readings is not None and taken.step != readings.step:
                what = f"at step {count(taken.step)}: {what}"
            row(symbol, scientific(value), unit, what)
        if readings is None:
            row("measured at", "–", "step", "no reading yet since the run stands here")
        else:
            age = readings.ages[self._layer] if self._layer < len(readings.ages) else 0
            told = f"‖W‖, ‖ΔW‖ and their ratio {count(age)} before" if age else "the newest reading"
            row("measured at", count(readings.step), "step", told)
        self.query_one("#readings", Static).update(table)
