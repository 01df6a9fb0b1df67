"""The screen of a run: its panels in nine views. Panels that changed are redrawn at the frame rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import ClassVar, Literal

import msgspec
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.geometry import Size
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget

from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.dialogs.activation import ActivationDialog
from tui_descent.dashboard.dialogs.end_card import EndCardDialog
from tui_descent.dashboard.dialogs.layer import LayerDialog
from tui_descent.dashboard.dialogs.predict import PredictDialog
from tui_descent.dashboard.left import Then
from tui_descent.dashboard.panels.caption import CaptionPanel
from tui_descent.dashboard.panels.chain_rule import ChainRulePanel, can_measure
from tui_descent.dashboard.panels.curvature import CurvaturePanel
from tui_descent.dashboard.panels.events import EventsPanel
from tui_descent.dashboard.panels.footer import FooterPanel
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.lens import LEAST_H, MOST_H, LensPanel, NudgePanel, asked_layer, limit_of
from tui_descent.dashboard.panels.loss_chart import LossPanel
from tui_descent.dashboard.panels.metrics import MetricsPanel
from tui_descent.dashboard.panels.output import OutputPanel
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.panels.race import RaceChartPanel, RaceMapPanel, RaceTablePanel
from tui_descent.dashboard.panels.sharpness import SharpnessPanel
from tui_descent.dashboard.panels.smallest_curvature import SmallestCurvaturePanel
from tui_descent.dashboard.panels.status import StatusPanel
from tui_descent.dashboard.panels.story import StoryPanel, scenario_of
from tui_descent.dashboard.panels.tabs import TabsPanel
from tui_descent.dashboard.panels.task import TaskPanel
from tui_descent.dashboard.panels.trainer_log import TrainerLogPanel
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.dashboard.prediction import Guess, Prediction
from tui_descent.dashboard.screens.too_small import TooSmall
from tui_descent.dashboard.terminal_size import MIN_HEIGHT, MIN_WIDTH, TALL_ROWS, script_size
from tui_descent.dashboard.text.layer_names import block_of, find_again
from tui_descent.dashboard.view import STORY, VIEWS, View
from tui_descent.protocol.commands import (
    AnyCommand,
    MeasureBackwardPass,
    ResizeTerminal,
    TurnKnob,
    WatchCurvature,
    WatchLens,
    WatchTask,
)
from tui_descent.protocol.layer_names import in_words
from tui_descent.protocol.lens import BINS
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.knobs import KNOBS, NEUTRAL_KNOBS, text_of
from tui_descent.scenario.spec import Scenario
from tui_descent.telemetry.script_output import ScriptOutput
from tui_descent.telemetry.story import end_card

# The panels that scroll with the arrow keys.
SCROLLING = EventsPanel | ChainRulePanel | MetricsPanel | OutputPanel | StoryPanel

WHEEL_ROWS = 3  # by which one notch of the mouse wheel scrolls
# How often the file with the script's output is read, while it is shown.
OUTPUT_EVERY_S = 0.2


class RunScreen(Screen[None]):
    """Holds the display settings; the run itself is in the bridge's history."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            key,
            f"app.press('{key}')",
            binding.label,
            show=False,
            key_display=binding.shown,
            tooltip=binding.description,
        )
        for binding in KEYS
        for key in binding.keys
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-huge")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (TALL_ROWS, "-tall")]  # noqa: RUF012
    AUTO_FOCUS = ""
    # How often the screen is drawn below an open dialog. Textual then dims the whole screen again each time.
    beneath_dialog_s: ClassVar[float] = 1.0

    class LeaveRequested(Message):
        """A key for leaving the run was pressed: to quit, to restart it or to go back to the gallery."""

        def __init__(self, then: Then = "quit") -> None:
            super().__init__()
            self.then = then

    def __init__(
        self,
        bridge: Bridge,
        *,
        name: str,
        log_path: Path | None = None,
        script: bool = False,
        scenario: Scenario | None = None,
    ) -> None:
        super().__init__()
        self.bridge = bridge
        self.view = View(
            history=bridge.history,
            name=name,
            scenario=scenario,
            own_terminal=script and log_path is None,
            read_only=bridge.read_only,
        )
        self._output = None if log_path is None else ScriptOutput(log_path)
        self._output_due_s = 0.0
        self._script_size: tuple[int, int] | None = None
        self._is_script = script
        self._drawn: object = None
        self._beneath_due_s = 0.0
        self._panels: list[Panel] = []
        self._layers = bridge.history.layers  # the list of layers that `view.selected` is an index of
        self._curvature_requested = False
        self._task_requested = WatchTask(on=False)
        self._lens_requested = WatchLens(on=False)
        self._lost_connections = 0
        self._end_shown_at: int | None = None  # the step of the end for which the card was opened
        self.add_class("view-overview")

    def compose(self) -> ComposeResult:
        """All panels. The stylesheet decides which are shown in which view and at which size."""
        yield StatusPanel(id="status")
        yield TabsPanel(id="tabs")
        with Horizontal(id="body"):
            with Vertical(id="race-map-column"):
                yield RaceMapPanel(id="race-map")
            with Vertical(id="race-column"):
                yield RaceChartPanel(id="race-chart")
                yield RaceTablePanel(id="race-table")
            with Vertical(id="chain-column"):
                yield ChainRulePanel(id="chain")
            with Vertical(id="curvature-column"):
                yield SharpnessPanel(id="sharpness")
                yield SmallestCurvaturePanel(id="smallest-curvature")
                yield CurvaturePanel(id="curvature")
            with Vertical(id="task-column"):
                yield TaskPanel(id="task")
            with Vertical(id="lens-column"):
                yield LensPanel(id="lens")
                yield NudgePanel(id="nudge")
            with Vertical(id="metrics-column"):
                yield MetricsPanel(id="metrics")
            with Vertical(id="time-column"):
                yield LossPanel(id="loss")
                yield HeatmapPanel(id="heatmap")
                yield TaskPanel(id="map")
            with Vertical(id="layers-column"):
                yield GradientsPanel(id="gradients")
                yield UpdatesPanel(id="updates")
            with Vertical(id="events-column"):
                yield EventsPanel(id="events")
                yield StoryPanel(id="story")
            with Vertical(id="output-column"):
                yield OutputPanel(id="output")
        yield CaptionPanel(id="caption")
        yield TrainerLogPanel(id="trainer-log")
        yield FooterPanel(id="footer")
        yield TooSmall(id="too-small")

    def on_mount(self) -> None:
        """Find the panels once: to query them takes long."""
        self._panels = list(self.query(Panel))

    def draw(self) -> None:
        """Draw one frame if anything has changed since the last one."""
        bridge = self.bridge
        if bridge.lost_connections != self._lost_connections:  # a new keeper knows of no open view
            self._lost_connections = bridge.lost_connections
            self._curvature_requested, self._script_size = False, None
            self._task_requested, self._lens_requested = WatchTask(on=False), WatchLens(on=False)
        self._request_curvature()
        self._request_task()
        self._request_lens()
        if self._is_script:
            self._resize_script_terminal()
        self.follow_layers()
        self._follow_race()
        self._show_end()
        if bridge.keeper_silent_s != self.view.keeper_silent_s:
            self.view = replace(self.view, keeper_silent_s=bridge.keeper_silent_s)
        if self._output is not None and self.has_class("view-output") and monotonic() >= self._output_due_s:
            self._output_due_s = monotonic() + OUTPUT_EVERY_S
            self.view = replace(self.view, output=self._output.lines())
        key = (bridge.revision, self.view)
        if key == self._drawn or (self._is_covered and monotonic() < self._beneath_due_s):
            return
        self._beneath_due_s = monotonic() + self.beneath_dialog_s
        self._drawn = key
        self.view = replace(
            self.view,
            history=bridge.history,
            exchange=bridge.exchange,
            connected=bridge.connected,
            trouble=bridge.trouble,
            reconnecting=bridge.reconnecting,
        )
        up_to_date = [panel.show(self.view) for panel in self._panels]
        self._drawn = (self.bridge.revision, self.view) if all(up_to_date) else None

    @property
    def _is_covered(self) -> bool:
        """Whether a dialog is open. Textual's `is_current` also holds for the screen beneath one."""
        return self.app.screen_stack[-1:] != [self]

    def follow_layers(self) -> None:
        """Keep the same layer selected when layers are added or removed."""
        history = self.bridge.history
        if history.layers is not self._layers:
            selected = find_again(self.view.selected, self._layers, history.layers)
            self.view, self._layers = replace(self.view, history=history, selected=selected), history.layers

    def _follow_race(self) -> None:
        """Show the panels of a race in the overview: the curves, the table and, for a test surface, the map."""
        lanes = self.bridge.history.lanes
        if lanes and not self.has_class("race"):
            self.query_one(RaceTablePanel).styles.height = len(lanes) + 3
            self.add_class("race")

    def _show_end(self) -> None:
        """Open the end card when a preset's run has reached its end, once for each end."""
        history = self.bridge.history
        at_end = history.state.state == "waiting" and history.steps > 0 and not history.lanes
        if not at_end or self._end_shown_at == history.steps or self._is_covered or is_too_small(self.size):
            return
        scenario = scenario_of(history.started)
        self._end_shown_at = history.steps
        if scenario is not None and scenario.story:
            card = end_card(scenario, history, self.view.name)
            self.app.push_screen(EndCardDialog(card), self._end_answered)

    def _end_answered(self, key: str | None) -> None:
        if key is not None:
            self.app.call_later(self.app.run_action, f"app.press('{key}')")

    def _request_curvature(self) -> None:
        """Make the trainer measure the curvature only while the curvature view is open, because it is expensive."""
        bridge, wanted = self.bridge, self.has_class("view-curvature")
        started = bridge.history.started
        # In a user's loop the curvature cannot be measured; the view says so.
        possible = bridge.connected and bridge.history.live and started is not None and started.scenario is not None
        if wanted != self._curvature_requested and possible:
            self._curvature_requested = wanted
            bridge.send(WatchCurvature(on=wanted))

    def _request_task(self) -> None:
        """Make the trainer send pictures of the task only while a panel shows them, in the panel's size.

        A test surface has no layers: the overview and the story show its picture in place of the heat-map.
        """
        bridge, wanted = self.bridge, WatchTask(on=False)
        scenario = scenario_of(bridge.history.started) or self.view.scenario
        on_surface, lanes = scenario is not None and scenario.data is None, bridge.history.lanes
        self.set_class(on_surface, "surface")
        shown = "task" if self.has_class("view-task") else ""
        if on_surface and self.has_class("view-overview"):
            shown = "race-map" if lanes else "map"
        elif on_surface and self.has_class(f"view-{STORY}") and not lanes:
            shown = "map"
        for panel in self._panels:
            columns, rows = panel.grid if isinstance(panel, TaskPanel) and panel.id == shown else (0, 0)
            if columns > 0 and rows > 0:  # 0 until the view's first layout
                wanted = WatchTask(on=True, columns=columns, rows=rows)
        started = bridge.history.started
        # In a user's loop the task is not known, and a race of nets has no picture; the view says so.
        possible = bridge.connected and bridge.history.live and started is not None and started.scenario is not None
        possible = possible and (not lanes or on_surface)
        if wanted != self._task_requested and possible:
            self._task_requested = wanted
            bridge.send(wanted)

    def _request_lens(self) -> None:
        """Make the trainer count pre-activations of the selected layer, only while the lens or the activation dialog is
        open.
        """
        bridge, wanted = self.bridge, WatchLens(on=False)
        if self.has_class("view-lens") or any(isinstance(one, ActivationDialog) for one in self.app.screen_stack):
            wanted = WatchLens(on=True, layer=asked_layer(self.view))
        started = bridge.history.started
        scenario = scenario_of(started)
        is_surface = scenario is not None and scenario.data is None  # without activations; the view says so
        possible = bridge.connected and bridge.history.live and started is not None and not is_surface
        if wanted != self._lens_requested and possible:
            self._lens_requested = wanted
            bridge.send(wanted)

    def _resize_script_terminal(self) -> None:
        """Give the script's terminal the size of the output panel."""
        wanted, bridge = script_size(*self.size), self.bridge
        if wanted != self._script_size and not bridge.unavailable and not is_too_small(self.size):
            self._script_size = wanted
            bridge.send(ResizeTerminal(columns=wanted[0], rows=wanted[1]))

    @property
    def up_to_date(self) -> bool:
        """Whether everything received has been drawn, including by panels that redraw less often."""
        return self._drawn == (self.bridge.revision, self.view)

    def on_resize(self, event: events.Resize) -> None:
        """If the terminal is too small, show only the size that is needed."""
        self.set_class(is_too_small(event.size), "too-small")
        self.query_one(FooterPanel).invalidate()  # its entries depend on the height of the screen

    def on_panel_redraw_needed(self) -> None:
        """Draw at the next frame although the history has not changed. A panel that has just appeared is empty, so it
        does not wait beneath a dialog either.
        """
        self._drawn, self._beneath_due_s = None, 0.0

    # Knobs.

    def can_send(self) -> bool:
        """Whether requests can be sent. If not, the footer shows why."""
        if self.bridge.unavailable:
            self.bridge.refuse(self.bridge.unavailable)
        return not self.bridge.unavailable

    def can_turn(self, knob: str) -> bool:
        """Whether a knob is available in this run. If it is not, the footer shows why."""
        history = self.bridge.history
        if not self.can_send():
            return False
        if knob in history.unavailable:
            self.bridge.refuse(f"{KNOBS[knob].title}: {history.unavailable[knob]}")
            return False
        if history.started is None:
            self.bridge.refuse("the network is not built yet")
            return False
        return True

    def send(self, command: AnyCommand) -> None:
        """Send a command, unless its knob is not available in this run. In the story view, ask for a prediction first.
        This needs a preset's story and a run that makes steps, now or when it is resumed.
        """
        if isinstance(command, TurnKnob) and not self.can_turn(command.knob):
            return
        if isinstance(command, TurnKnob) and self._asks_predictions() and self._changes_something(command):
            self._ask_prediction(command)
        else:
            self.bridge.send(command)

    def _asks_predictions(self) -> bool:
        history = self.bridge.history
        scenario = scenario_of(history.started)
        is_open = self.view.story_open and self.view.predict
        makes_steps = history.state.state in ("running", "paused")
        return is_open and makes_steps and scenario is not None and bool(scenario.story)

    def _changes_something(self, command: TurnKnob) -> bool:
        """Whether a change may have an effect on the loss. One to the present value has none, except a redraw."""
        now = self.knob_value(command.knob, command.target).split(" ")[0]
        is_so = command.value == now and command.knob != "init" and command.where is None
        return command.knob not in NEUTRAL_KNOBS and not is_so

    def _ask_prediction(self, command: TurnKnob) -> None:
        def answered(guess: Guess | Literal["no guess"] | None) -> None:
            request = self.bridge.send(command) if guess is not None else None
            if guess == "no guess":
                self.view = replace(self.view, predict=False, prediction=None)
            elif guess is not None and request is not None and self.bridge.client is not None:
                prediction = Prediction(client=self.bridge.client, request=request, guess=guess)
                self.view = replace(self.view, prediction=prediction)

        self.app.push_screen(PredictDialog(text_of(command)), answered)

    def send_to_selection(self, command: TurnKnob) -> None:
        """Send a change for the selected layer or block; for the whole net if the knob cannot act on a part."""
        target = self.target_for(command.knob)
        if target is not None:
            self.send(msgspec.structs.replace(command, target=target))

    def knob_value(self, knob: str, target: str = "all") -> str:
        """A knob's value for the whole net or one block.

        A requested value counts even before its reply, so a key pressed twice makes two changes.
        """
        if requested := self.bridge.requested_value(knob, target):
            return requested
        history = self.bridge.history
        if target == "all":
            return history.knobs.get(knob, "")
        for turned in reversed(history.interventions):
            if turned.knob == knob and turned.target in (target, "all") and turned.segment == history.segment:
                return turned.new
        states = history.started.knobs if history.started is not None else ()
        return next((state.value for state in states if state.name == knob), "")

    def selected_block(self) -> str | None:
        """The selected layer's block, or `all` if no layer is selected.

        If the layer is not in a block, returns None and shows why.
        """
        if self.view.selected is None or self.view.selected >= len(self.view.layers):
            return "all"
        layer = self.view.layers[self.view.selected]
        block = block_of(layer)
        if block is None:
            self.bridge.refuse(f"{in_words(layer.name)} is not in a block; press escape to act on the whole net")
        return block

    def target_for(self, knob: str) -> str | None:
        """The target for a knob with the current selection: a layer, a block or `all`. None as in `selected_block`."""
        kind = KNOBS[knob].targets
        if kind == "layer" and self.view.selected is not None and self.view.selected < len(self.view.layers):
            return self.view.layers[self.view.selected].name
        return "all" if kind in ("net", "optimizer") else self.selected_block()

    # Display settings.

    def toggle_log(self) -> None:
        """Switch the loss axis between logarithmic and linear."""
        self.view = replace(self.view, log=not self.view.log)

    def toggle_recent(self) -> None:
        """Switch the time axis between the whole run and the last steps."""
        self.view = replace(self.view, recent=not self.view.recent)

    def toggle_ghosts(self) -> None:
        """Show or hide the loss curves of undone steps."""
        self.view = replace(self.view, ghosts=not self.view.ghosts)

    def toggle_line(self, line: str) -> None:
        """Hide a line of a chart, or show it again."""
        self.view = replace(self.view, hidden=self.view.hidden ^ {line})

    def show_other_lines(self) -> None:
        """Show each line of a chart alone, one after the other, then all again. The chart is the one that has the
        focus, or the first one with several lines.
        """
        charts = [panel for panel in self._panels if panel.lines and _can_zoom(panel)]
        if not charts:
            self.bridge.refuse("no chart of this view has lines that can be hidden")
            return
        lines = self.focused.lines if self.focused in charts else charts[0].lines
        choices = [frozenset[str](), *(frozenset(lines) - {line} for line in lines)]
        hidden = self.view.hidden.intersection(lines)
        after = choices[(choices.index(hidden) + 1) % len(choices)] if hidden in choices else choices[0]
        self.view = replace(self.view, hidden=self.view.hidden.difference(lines) | after)

    def toggle_events(self) -> None:
        """Show all events, or only changes, findings and errors."""
        self.view = replace(self.view, all_events=not self.view.all_events)

    def show_view(self, view: str) -> None:
        """Switch to one of `VIEWS` or to the story. If it has a panel that scrolls, that panel gets the focus."""
        self._unzoom()
        self.query_one(ChainRulePanel).leave_steps()
        for name in (*VIEWS, STORY):
            self.set_class(name == view, f"view-{name}")
        self.view = replace(self.view, shown=view)
        scrolls: dict[str, type[Panel]] = {
            "events": EventsPanel,
            "chain": ChainRulePanel,
            "metrics": MetricsPanel,
            "output": OutputPanel,
            STORY: StoryPanel,
        }
        self.set_focus(self.query_one(scrolls[view]) if view in scrolls else None)

    def on_panel_layer_clicked(self, event: Panel.LayerClicked) -> None:
        """Select a layer that was clicked; a second click opens its readings."""
        if self.view.selected == event.layer:
            self.open_layer()
        else:
            self.view = replace(self.view, selected=event.layer)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll towards the end."""
        self._scroll(event, -WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll towards the beginning."""
        self._scroll(event, WHEEL_ROWS)

    def _scroll(self, event: events.MouseEvent, rows: int) -> None:
        """Scroll the panel below the mouse; if it does not scroll, the one that has the focus."""
        widget, _ = self.get_widget_at(event.screen_x, event.screen_y)
        for panel in (widget, self.focused):
            if isinstance(panel, SCROLLING):
                panel.scroll_by(rows)
                self._drawn = None
                return

    def show_story(self) -> None:
        """Open the story; if it is open, switch the questions for predictions on or off."""
        if not self.has_class(f"view-{STORY}"):
            self.show_view(STORY)
        else:
            self.view = replace(self.view, predict=not self.view.predict, prediction=None)

    def focus_next_panel(self) -> None:
        """Focus the next visible panel."""
        self.focus_next(Panel)

    def zoom(self) -> None:
        """Show the focused panel alone, or all panels again."""
        if self.has_class("zoomed"):
            self._unzoom()
            return
        panel = self.focused if isinstance(self.focused, Panel) else next(filter(_can_zoom, self.query(Panel)))
        self.set_focus(panel)
        self.add_class("zoomed")
        panel.add_class("zoomed-on")
        if isinstance(panel.parent, Widget):
            panel.parent.add_class("zoomed-on")

    def _unzoom(self) -> None:
        self.remove_class("zoomed")
        for widget in self.query(".zoomed-on"):
            widget.remove_class("zoomed-on")

    def select_or_scroll(self, up: int) -> None:
        """Select the next layer towards the output (+1) or the input (-1).

        If the focused panel scrolls, scroll it instead.
        """
        if isinstance(self.focused, SCROLLING):
            self.focused.scroll_by(up)
            self._drawn = None
            return
        count = len(self.view.layers)
        if count:
            now = self.view.selected
            selected = (count - 1 if up < 0 else 0) if now is None else min(max(now + up, 0), count - 1)
            self.view = replace(self.view, selected=selected)

    def deselect_layer(self) -> None:
        """Clear the selection. Knobs then act on the whole net. While stepping through a backward pass, leave that
        instead.
        """
        if self._shows_chain_rule() and (chain := self.query_one(ChainRulePanel)).stepping:
            chain.leave_steps()
            self._drawn = None
            return
        if self.has_class("zoomed"):
            self._unzoom()
        self.view = replace(self.view, selected=None)

    def change_nudge(self, key: str) -> None:
        """Move the lens' x by a bin of its histogram, or halve or double h."""
        if not self.has_class("view-lens"):
            self.bridge.refuse("← → ( ) change x and h of the activation lens; press 9 to open it")
            return
        nudge, limit = self.view.nudge, limit_of(self.view)
        x = min(max(nudge.x, -limit), limit)
        if key in ("left", "right"):
            x += 2 * limit / BINS * (1 if key == "right" else -1)
            nudge = replace(nudge, x=min(max(x, -limit), limit))
        else:
            h = nudge.h * (2.0 if key == "right_parenthesis" else 0.5)
            nudge = replace(nudge, h=min(max(h, LEAST_H), MOST_H))
        self.view = replace(self.view, nudge=nudge)

    def open_layer_or_step(self) -> None:
        """In the chain-rule view, step through the backward pass; elsewhere open the selected layer's dialog."""
        if not self._shows_chain_rule():
            self.open_layer()
            return
        chain = self.query_one(ChainRulePanel)
        starts = not chain.stepping
        if chain.step(self.view):
            self._drawn = None
            if starts and can_measure(self.view) and not self.bridge.unavailable:
                self.bridge.send(MeasureBackwardPass())
        elif can_measure(self.view) and self.view.history.ledger is not None and not self.bridge.unavailable:
            chain.await_steps(self.view)
            self.bridge.send(MeasureBackwardPass())
        else:
            self.bridge.refuse("no chain-rule reading to step through")

    def _shows_chain_rule(self) -> bool:
        zoomed_away = self.has_class("zoomed") and not self.query_one(ChainRulePanel).has_class("zoomed-on")
        return self.has_class("view-chain") and not zoomed_away

    def open_layer(self) -> None:
        """Open the dialog of the selected layer; if none is selected, select the last layer first."""
        if not self.view.layers:
            self.bridge.refuse("the network is not built yet")
            return
        layer = self.view.selected if self.view.selected is not None else len(self.view.layers) - 1
        self.view = replace(self.view, selected=layer)
        self.app.push_screen(LayerDialog(self.bridge, layer))

    def leave(self, then: Then = "quit") -> None:
        """Request to leave; the app asks whether to stop the run."""
        self.post_message(self.LeaveRequested(then))


def is_too_small(size: Size) -> bool:
    """Whether the panels do not fit."""
    return size.width < MIN_WIDTH or size.height < MIN_HEIGHT


def _can_zoom(panel: Panel) -> bool:
    """Whether a panel is visible and can have the focus."""
    nodes = panel.ancestors_with_self
    return panel.can_focus and all(node.display for node in nodes if isinstance(node, Widget))
