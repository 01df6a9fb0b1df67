"""The views as tabs, each with its key: a row of their own on tall screens, and an entry of the footer on low ones."""

from __future__ import annotations

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.clickable import presses
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.view import RACE_VIEWS, STORY, VIEWS, View


class TabsPanel(Panel, can_focus=False):
    """One row. Where not all names fit, only that of the shown view is written."""

    def depends_on(self, view: View) -> object:
        """The shown view, whether there is a story, and whether this is a race."""
        return view.shown, _has_story(view), bool(view.history.lanes)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        tabs = _tabs(view)
        names = {name: f" {title}" for name, (_, title) in tabs.items()}
        if sum(2 + len(key) + cell_len(names[name]) for name, (key, _) in tabs.items()) >= width:
            names = {name: text if name == view.shown else "" for name, text in names.items()}
        line = Line()
        for name, (key, _) in tabs.items():
            line.add(" ")
            _add(line, key, names[name], is_shown=name == view.shown)
            line.add(" ")
        return [line.to_strip(width)]


def compact_tabs(view: View) -> list[tuple[str, Style]]:
    """The keys of the views without names, for the footer."""
    line = Line()
    for name, (key, _) in _tabs(view).items():
        _add(line, key, "", is_shown=name == view.shown)
    return [(segment.text, segment.style or colours.KEY) for segment in line.segments]


def _tabs(view: View) -> dict[str, tuple[str, str]]:
    """Key and title by the name of the view."""
    shown = RACE_VIEWS if view.history.lanes else VIEWS
    tabs = {name: (str(n), title) for n, (name, title) in enumerate(VIEWS.items(), 1) if name in shown}
    return tabs | {STORY: ("h", "story")} if _has_story(view) else tabs


def _has_story(view: View) -> bool:
    started = view.history.started
    return started is None or started.scenario is not None


def _add(line: Line, key: str, title: str, *, is_shown: bool) -> None:
    click = presses(key)
    line.add(key, (colours.CHOSEN if is_shown else colours.KEY) + click)
    line.add(title, (colours.CHOSEN if is_shown else colours.DIM) + click)
