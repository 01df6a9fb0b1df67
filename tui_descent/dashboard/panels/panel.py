"""The base of all panels: draws rows itself and repaints only those that differ from what is on the screen."""

from __future__ import annotations

from time import monotonic
from typing import ClassVar

from rich.style import Style
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View


class Panel(Widget, can_focus=True):
    """Answers a view and a size with strips; the frame timer calls `show`, and nothing else makes it draw."""

    about: ClassVar[str] = ""
    # Numbers are not read ten times a second: a panel may follow the run at a slower pace than its keys.
    pace_s: ClassVar[float] = 0.0

    class RoomChanged(Message):
        """The panel must be drawn though the run has told nothing new."""

        def can_replace(self, message: Message) -> bool:
            """One is enough."""
            return isinstance(message, Panel.RoomChanged)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: list[Strip] = []
        self._drawn: object = None
        self._look: object = None
        self._at = 0.0
        self._heading = ("", "")

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """At most `height` rows of `width` cells."""
        raise NotImplementedError

    def heading(self, view: View) -> tuple[str, str]:
        """Texts of the upper and lower border, as content markup of our own words."""
        return "", ""

    def cares(self, view: View) -> object:
        """What the picture depends on besides the size: while it is equal, nothing is drawn."""
        return view, view.history.revision

    def show(self, view: View) -> bool:
        """Bring the panel up to date; False where it is not yet time to."""
        width, height = self.content_size
        if not (
            width and height and all(node.display for node in self.ancestors_with_self if isinstance(node, Widget))
        ):
            return True
        wanted = (self.cares(view), width, height)
        if wanted == self._drawn:
            return True
        look = (view.selected, view.recent, view.log, view.connected, view.history.state.state, width, height)
        if self._drawn is not None and look == self._look and monotonic() - self._at < self.pace_s:
            return False
        self._drawn, self._look, self._at = wanted, look, monotonic()
        self._repaint(view, width, height)
        return True

    def _repaint(self, view: View, width: int, height: int) -> None:
        base = Style(bgcolor=self.background_colors[1].rich_color)
        rows = [strip.apply_style(base) for strip in self.draw(view, width, height)[:height]]
        rows += [Line().strip(width, base)] * (height - len(rows))
        # After the drawing, which may have widened the scale that the border tells; a new border repaints all.
        heading = self.heading(view)
        if heading != self._heading:
            self._heading = heading
            self.border_title, self.border_subtitle = heading
        before, self._rows = self._rows, rows
        if len(before) != height:
            self.refresh()
            return
        changed = [Region(0, y, width, 1) for y in range(height) if before[y] != rows[y]]
        if changed:
            self.refresh(*changed)

    def on_resize(self) -> None:
        """More or less room: the rows no longer fit."""
        self.forget()
        self.post_message(self.RoomChanged())

    def on_show(self) -> None:
        """Hidden panels are not drawn, so this one may lag behind."""
        self.post_message(self.RoomChanged())

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


def empty(view: View, width: int, height: int, what: str, *, state: bool = False) -> list[Strip]:
    """Why there is nothing to draw yet; one panel with `state` says it while the run is being made."""
    if not view.connected and view.history.live:
        return notice([(plain(view.trouble) or "looking for the keeper…", colours.DIM)] if state else [], width, height)
    making = {"importing torch": "importing torch…", "building": "building the network…"}
    first = "next" if view.history.segment else "first"
    waiting = {"running": f"waiting for the {first} {what}…", "paused": f"paused before the {first} {what}"}
    now = view.history.state.state
    words = (making[now] if state else "") if now in making else waiting.get(now, f"no {what}")
    return notice([(words, colours.DIM)], width, height)
