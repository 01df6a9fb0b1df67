"""The one screen of a run: five views over its panels, drawn at the frame rate, and only what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget

from tui_descent.dashboard import actions
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.panels.chain_rule import ChainPanel
from tui_descent.dashboard.panels.curvature import CurvaturePanel
from tui_descent.dashboard.panels.events import EventsPanel
from tui_descent.dashboard.panels.footer import ConversationPanel
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.loss import LossPanel
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.panels.sharpness import SharpnessPanel
from tui_descent.dashboard.panels.smallest_curvature import LowestPanel
from tui_descent.dashboard.panels.status import StatusPanel
from tui_descent.dashboard.panels.story import StoryPanel
from tui_descent.dashboard.panels.trainer_log import EndingPanel
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.dashboard.screens.too_small import MIN_HEIGHT, MIN_WIDTH, TooSmall
from tui_descent.dashboard.text.layer_names import moved, target_of
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import AnyCommand, TurnKnob, WatchCurvature
from tui_descent.scenario.knobs import KNOBS

if TYPE_CHECKING:
    from tui_descent.dashboard.app import DescentApp


class RunScreen(Screen[None]):
    """Holds how the person wants to see the run; the run itself is the bridge's."""

    BINDINGS: ClassVar[list[BindingType]] = [*actions.bindings()]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-huge")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-tall")]  # noqa: RUF012
    AUTO_FOCUS = ""

    def __init__(self, bridge: Bridge, *, name: str, log_path: Path | None = None) -> None:
        super().__init__()
        self.bridge = bridge
        self.look = View(history=bridge.history, name=name)
        self._log_path = log_path
        self._drawn: object = None
        self._layers = bridge.history.layers  # that the selection is among
        self._curious = False  # whether the run was asked for its curvature
        self.add_class("view-overview")

    def compose(self) -> ComposeResult:
        """All panels; the stylesheet says which are seen in which view and at which size."""
        yield StatusPanel(id="status")
        with Horizontal(id="body"):
            with Vertical(id="ledger"):
                yield ChainPanel(id="chain")
            with Vertical(id="bend"):
                yield SharpnessPanel(id="sharpness")
                yield LowestPanel(id="lowest")
                yield CurvaturePanel(id="curvature")
            with Vertical(id="time"):
                yield LossPanel(id="loss")
                yield HeatmapPanel(id="heatmap")
            with Vertical(id="now"):
                yield GradientsPanel(id="gradients")
                yield UpdatesPanel(id="updates")
            with Vertical(id="more"):
                yield EventsPanel(id="events")
                yield StoryPanel(id="story")
        yield EndingPanel(id="ending")
        yield ConversationPanel(id="conversation")
        yield TooSmall(id="too-small")

    def draw(self) -> None:
        """One frame, if anything is new since the last one."""
        self._ask_for_curvature()
        self._follow_layers()
        key = (self.bridge.revision, self.look)
        if key == self._drawn:
            return
        self._drawn = key
        bridge = self.bridge
        self.look = replace(
            self.look,
            history=bridge.history,
            exchange=bridge.exchange,
            connected=bridge.connected,
            trouble=self._trouble(),
        )
        up_to_date = [panel.show(self.look) for panel in self.query(Panel)]
        self._drawn = (self.bridge.revision, self.look) if all(up_to_date) else None

    def _follow_layers(self) -> None:
        """The selected layer stays the one it is when others come or go."""
        history = self.bridge.history
        if history.layers is not self._layers:
            selected = moved(self.look.selected, self._layers, history.layers)
            self.look, self._layers = replace(self.look, history=history, selected=selected), history.layers

    def _ask_for_curvature(self) -> None:
        """It is read while its view is open, and only then: it costs the trainer more than all the rest."""
        bridge, wanted = self.bridge, self.has_class("view-curvature")
        if wanted != self._curious and bridge.connected and bridge.history.live and bridge.history.started is not None:
            self._curious = wanted
            bridge.send(WatchCurvature(on=wanted))

    def _trouble(self) -> str:
        """What is wrong with the connection, and where to read more."""
        where = f" (log: {self._log_path})" if self._log_path is not None else ""
        return f"{self.bridge.trouble}{where}" if self.bridge.trouble else ""

    @property
    def up_to_date(self) -> bool:
        """Whether all that is known is drawn, also by panels that follow at their own pace."""
        return self._drawn == (self.bridge.revision, self.look)

    def on_resize(self, event: events.Resize) -> None:
        """Say what is needed where the picture does not fit."""
        small = event.size.width < MIN_WIDTH or event.size.height < MIN_HEIGHT
        self.set_class(small, "too-small")

    def on_panel_room_changed(self) -> None:
        """Draw at the next frame though the run has told nothing new."""
        self._drawn = None

    def action_press(self, place: int, pressed: str) -> None:
        """A key of the table."""
        self._follow_layers()
        actions.press(self, place, pressed)

    # What keys ask for.

    def can_turn(self, knob: str) -> bool:
        """Whether a knob can act in this run; if not, the reason goes on screen."""
        history = self.bridge.history
        if self.bridge.unavailable:
            self.bridge.refuse(self.bridge.unavailable)
            return False
        if knob in history.unavailable:
            self.bridge.refuse(f"{KNOBS[knob].title}: {history.unavailable[knob]}")
            return False
        if history.started is None:
            self.bridge.refuse("the network is not built yet")
            return False
        return True

    def ask(self, command: AnyCommand) -> None:
        """Send a command, unless its knob cannot act here."""
        if not isinstance(command, TurnKnob) or self.can_turn(command.knob):
            self.bridge.send(command)

    def ask_for_target(self, command: TurnKnob) -> None:
        """Send a turn for what is selected, where its knob can act on less than the whole net."""
        target = self.target_for(command.knob)
        if target is not None:
            self.ask(msgspec.structs.replace(command, target=target))

    def value(self, knob: str, target: str = "all") -> str:
        """A knob's value, counting what is asked for already: a key pressed twice goes two steps."""
        return self.bridge.requested_value(knob, target) or actions.value_of(self.bridge.history, knob, target)

    def target(self) -> str | None:
        """What knobs act on; None, and the reason on screen, where the selected layer is in no block."""
        if self.look.selected is None or self.look.selected >= len(self.look.layers):
            return "all"
        layer = self.look.layers[self.look.selected]
        target = target_of(layer)
        if target is None:
            self.bridge.refuse(f"{layer.name} lies in no block; escape selects the whole net")
        return target

    def target_for(self, knob: str) -> str | None:
        """What one knob acts on: the selected layer, its block or the whole run, as the knob's table has it."""
        kind = KNOBS[knob].targets
        if kind == "layer" and self.look.selected is not None and self.look.selected < len(self.look.layers):
            return self.look.layers[self.look.selected].name
        return "all" if kind == "net" else self.target()

    # How the person looks at it.

    def toggle_log(self) -> None:
        """Logarithmic or linear loss."""
        self.look = replace(self.look, log=not self.look.log)

    def toggle_window(self) -> None:
        """Whole run or last steps."""
        self.look = replace(self.look, recent=not self.look.recent)

    def toggle_ghosts(self) -> None:
        """What was left behind, shown or not."""
        self.look = replace(self.look, ghosts=not self.look.ghosts)

    def show_view(self, view: str) -> None:
        """One of the table's views; what scrolls in it has the focus."""
        self._unzoom()
        for name in actions.VIEWS:
            self.set_class(name == view, f"view-{name}")
        scrolls: dict[str, type[Panel]] = {"events": EventsPanel, "chain": ChainPanel}
        self.set_focus(self.query_one(scrolls[view]) if view in scrolls else None)

    def focus_next_panel(self) -> None:
        """Round all panels that can be seen."""
        self.focus_next(Panel)

    def zoom(self) -> None:
        """The focused panel alone, and back."""
        if self.has_class("zoomed"):
            self._unzoom()
            return
        panel = self.focused if isinstance(self.focused, Panel) else next(p for p in self.query(Panel) if _seen(p))
        self.set_focus(panel)
        self.add_class("zoomed")
        panel.add_class("zoomed-on")
        if isinstance(panel.parent, Widget):
            panel.parent.add_class("zoomed-on")

    def _unzoom(self) -> None:
        self.remove_class("zoomed")
        for widget in self.query(".zoomed-on"):
            widget.remove_class("zoomed-on")

    def move(self, up: int) -> None:
        """Select the next layer towards the output, or scroll where there are no layers."""
        if isinstance(self.focused, EventsPanel | ChainPanel):
            self.focused.scroll_by(up)
            self._drawn = None
            return
        count = len(self.look.layers)
        if count:
            now = self.look.selected
            selected = (count - 1 if up < 0 else 0) if now is None else min(max(now + up, 0), count - 1)
            self.look = replace(self.look, selected=selected)

    def clear_selection(self) -> None:
        """No layer: knobs act on the whole net."""
        if self.has_class("zoomed"):
            self._unzoom()
        self.look = replace(self.look, selected=None)

    def open_layer(self) -> None:
        """All readings of the selected layer."""
        from tui_descent.dashboard.dialogs.layer import LayerDialog

        if not self.look.layers:
            self.bridge.refuse("the network is not built yet")
            return
        layer = self.look.selected if self.look.selected is not None else len(self.look.layers) - 1
        self.look = replace(self.look, selected=layer)
        self.app.push_screen(LayerDialog(self.bridge, layer))

    def leave(self) -> None:
        """Ask how, unless the run is over already."""
        descent: DescentApp = self.app  # type: ignore[assignment]
        descent.leave()


def _seen(panel: Panel) -> bool:
    """Whether it is one of the view's that can have the focus."""
    nodes = panel.ancestors_with_self
    return panel.can_focus and all(node.display for node in nodes if isinstance(node, Widget))
