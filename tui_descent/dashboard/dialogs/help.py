"""The help dialog: all keys, taken from the table of key bindings, and what each panel shows."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.panels.chain_rule import ChainRulePanel
from tui_descent.dashboard.panels.curvature import CurvaturePanel
from tui_descent.dashboard.panels.events import EventsPanel
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.lens import LensPanel, NudgePanel
from tui_descent.dashboard.panels.look_ahead import LookAheadPanel
from tui_descent.dashboard.panels.loss_chart import LossPanel
from tui_descent.dashboard.panels.metrics import MetricsPanel
from tui_descent.dashboard.panels.output import OutputPanel
from tui_descent.dashboard.panels.race import RaceChartPanel, RaceMapPanel, RaceTablePanel
from tui_descent.dashboard.panels.range_test import RangeTestPanel
from tui_descent.dashboard.panels.sharpness import SharpnessPanel
from tui_descent.dashboard.panels.smallest_curvature import SmallestCurvaturePanel
from tui_descent.dashboard.panels.story import StoryPanel
from tui_descent.dashboard.panels.task import TaskPanel
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.scenario.keys import KEYS

PANELS = {
    "Loss": LossPanel,
    "Range test": RangeTestPanel,
    "Look ahead": LookAheadPanel,
    "Gradient flow": HeatmapPanel,
    "Gradient": GradientsPanel,
    "Update": UpdatesPanel,
    "Chain rule": ChainRulePanel,
    "Activation lens": LensPanel,
    "Nudge": NudgePanel,
    "Sharpness": SharpnessPanel,
    "Smallest curvature": SmallestCurvaturePanel,
    "Curvature": CurvaturePanel,
    "Events": EventsPanel,
    "Metrics": MetricsPanel,
    "Output": OutputPanel,
    "Task": TaskPanel,
    "Race: loss": RaceChartPanel,
    "Race: table": RaceTablePanel,
    "Race: map": RaceMapPanel,
    "Story": StoryPanel,
}


class HelpDialog(Dialog[None]):
    hints = "↑ ↓ scroll · escape closes"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,q", "cancel", show=False)]

    def compose(self) -> ComposeResult:
        """The keys, then the panels."""
        with VerticalScroll(classes="dialog wide") as box:
            box.border_title = "Help"
            yield Static(Group(_keys(), Text(""), _panels()))


def _keys() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style=colours.KEY, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style=colours.DIM)
    for key in KEYS:
        table.add_row(key.shown, key.label, key.description)
    return table


def _panels() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(style=colours.BRIGHT, no_wrap=True)
    table.add_column(style=colours.DIM)
    for name, panel in PANELS.items():
        table.add_row(name, panel.help_text)
    return table
