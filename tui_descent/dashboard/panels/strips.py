"""The base of all panels: draws rows itself and repaints only those that differ from what is on the screen."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui_descent.dashboard import ink
from tui_descent.dashboard.panels.line import Line
from tui_descent.dashboard.panels.view import View


class Panel(Widget, can_focus=True):
    """Answers a view and a size with strips; the frame timer calls `show`, and nothing else makes it draw."""

    about: ClassVar[str] = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Strip] = []
        self._drawn: object = None

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """At most `height` rows of `width` cells."""
        raise NotImplementedError

    def heading(self, view: View) -> tuple[str, str]:
        """Texts of the upper and lower border, as content markup of our own words."""
        return "", ""

    def cares(self, view: View) -> object:
        """What the picture depends on besides the size: while it is equal, nothing is drawn."""
        return view, view.history.revision

    def show(self, view: View) -> None:
        """Bring the panel up to date."""
        width, height = self.content_size
        if not (
            width and height and all(node.display for node in self.ancestors_with_self if isinstance(node, Widget))
        ):
            return
        wanted = (self.cares(view), width, height)
        if wanted == self._drawn:
            return
        self._drawn = wanted
        title, subtitle = self.heading(view)
        if str(self.border_title or "") != title:
            self.border_title = title
        if str(self.border_subtitle or "") != subtitle:
            self.border_subtitle = subtitle
        base = Style(bgcolor=self.background_colors[1].rich_color)
        rows = [strip.apply_style(base) for strip in self.draw(view, width, height)[:height]]
        rows += [Line().strip(width, base)] * (height - len(rows))
        before, self._rows = self._rows, rows
        if len(before) != height:
            self.refresh()
            return
        changed = [Region(0, y, width, 1) for y in range(height) if before[y] != rows[y]]
        if changed:
            self.refresh(*changed)

    def forget(self) -> None:
        """Draw again at the next frame, whatever it shows."""
        self._drawn = None

    def render_line(self, y: int) -> Strip:
        """Textual asks for a row."""
        if y < len(self._rows):
            return self._rows[y]
        return Strip.blank(self.content_size.width, Style(bgcolor=self.background_colors[1].rich_color))


def notice(lines: list[tuple[str, Style]], width: int, height: int) -> list[Strip]:
    """A few words in the middle of an empty panel."""
    top = max(0, (height - len(lines)) // 2)
    rows = [Line().strip(width)] * top
    rows += [Line().put(" " * max(0, (width - len(text)) // 2)).put(text, style).strip(width) for text, style in lines]
    return rows[:height]


def empty(view: View, width: int, height: int, what: str) -> list[Strip]:
    """Why there is nothing to draw yet, in the run's own state."""
    if not view.connected and view.history.live:
        return notice([(view.trouble or "looking for the keeper…", ink.DIM)], width, height)
    state = view.history.state.state
    words = {
        "importing torch": "importing torch…",
        "building": "building the network…",
        "running": f"waiting for the first {what}…",
        "paused": f"paused before the first {what}",
    }.get(state, f"no {what}")
    return notice([(words, ink.DIM)], width, height)
