"""The base class of all panels: it keeps its rows and repaints only those that changed."""

from __future__ import annotations

import textwrap
from time import monotonic
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.events import Click, MouseMove
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.clickable import PRESS
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View

# Nobody can read numbers at 10 Hz. Panels are drawn at every second or fourth of ten frames a second, all at the same
# ones, because an update of several panels takes Textual hardly longer than that of one.
FAST_S, SLOW_S = 0.17, 0.37
NOTHING = Strip([])
UNDERLINED = Style(underline=True)


class Panel(Widget, can_focus=True):
    """Draws a `View` as rows. Drawing happens only in `show`, which the frame timer calls."""

    help_text: ClassVar[str] = ""
    # The lines of the panel's chart that can be hidden.
    lines: ClassVar[tuple[str, ...]] = ()
    # The least time between two redraws. A key, its answer, a new state or a new size redraws at once.
    min_interval_s: ClassVar[float] = FAST_S

    class RedrawNeeded(Message):
        """The panel must be drawn although the history has not changed."""

        def can_replace(self, message: Message) -> bool:
            """Messages of this kind that are still waiting may be merged into one."""
            return isinstance(message, Panel.RedrawNeeded)

    class KeyClicked(Message):
        """Something was clicked that acts as a key. `key` is Textual's name of it."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class LayerClicked(Message):
        """A layer was clicked."""

        def __init__(self, layer: int) -> None:
            super().__init__()
            self.layer = layer

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._hovered: dict[str, Any] = {}  # what is below the mouse, if a click on it does something
        self._contents: list[Strip] = []  # what was drawn last
        self._base = Style()
        self._rows: list[Strip] = []  # the same on the panel's background
        self._drawn: object = None
        self._settings: object = None
        self._drawn_at_s = 0.0
        self._heading = ("", "")

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Draw at most `height` rows of `width` cells."""
        raise NotImplementedError

    def heading(self, view: View) -> tuple[str, str]:
        """The border's title and subtitle, as Textual markup. Text from users or files must not be part of it."""
        return "", ""

    def depends_on(self, view: View) -> object:
        """A value on which the drawing depends. The panel is redrawn only when this value or the size changes."""
        return view, view.history.revision

    def show(self, view: View) -> bool:
        """Redraw if needed. Returns False if a redraw is needed but not due yet, so `show` must be called again."""
        width, height = self.content_size
        if not (
            width and height and all(node.display for node in self.ancestors_with_self if isinstance(node, Widget))
        ):
            return True
        wanted = (self.depends_on(view), width, height)
        if wanted == self._drawn:
            return True
        look = (view.recent, view.log, view.ghosts, view.all_events, view.nudge, view.hidden, view.shown)
        settings = (*look, view.selected, view.exchange, view.connected, view.history.state.state, width, height)
        if (
            self._drawn is not None
            and settings == self._settings
            and monotonic() - self._drawn_at_s < self.min_interval_s
        ):
            return False
        self._drawn, self._settings, self._drawn_at_s = wanted, settings, monotonic()
        self._repaint(view, width, height)
        return True

    def _repaint(self, view: View, width: int, height: int) -> None:
        base = Style(bgcolor=self.background_colors[1].rich_color)
        contents = self.draw(view, width, height)[:height]
        contents += [Line().to_strip(width)] * (height - len(contents))
        # The heading is read after `draw`, which may widen the scale shown in it. Textual repaints the whole panel for
        # a new heading.
        heading = self.heading(view)
        if heading != self._heading:
            self._heading = heading
            self.border_title, self.border_subtitle = heading
        if base != self._base or len(self._contents) != height:
            self._base = base
            self._contents, self._rows = [NOTHING] * height, [NOTHING] * height
            self.refresh()
        changed = [
            y for y in range(height) if contents[y] is not self._contents[y] and contents[y] != self._contents[y]
        ]
        for y in changed:
            self._rows[y] = contents[y].apply_style(base)
        self._contents = contents
        if changed:
            self.refresh(*[Region(0, y, width, 1) for y in changed])

    # The mouse.

    def clickable_at(self, event: Click | MouseMove) -> dict[str, Any]:
        """What a click does there, as the style's meta data; empty if it does nothing."""
        meta: dict[str, Any] = event.style.meta
        return {name: meta[name] for name in (PRESS, "layer") if name in meta}

    def on_mouse_move(self, event: MouseMove) -> None:
        """Underline what can be clicked."""
        self.hover(self.clickable_at(event))

    def on_leave(self) -> None:
        """Underline nothing any more."""
        self.hover({})

    def hover(self, what: dict[str, Any]) -> None:
        """Underline everything with this meta data."""
        if what != self._hovered:
            self._hovered = what
            self.refresh()

    def on_click(self, event: Click) -> None:
        """Act as the key that was clicked, or select the layer."""
        what = self.clickable_at(event)
        if PRESS in what:
            event.stop()
            self.post_message(self.KeyClicked(what[PRESS]))
        elif "layer" in what:
            event.stop()
            self.post_message(self.LayerClicked(what["layer"]))

    def on_resize(self) -> None:
        """Redraw in the new size."""
        self.invalidate()
        self.post_message(self.RedrawNeeded())

    def on_show(self) -> None:
        """Redraw, because a hidden panel is not kept up to date."""
        self.post_message(self.RedrawNeeded())

    def invalidate(self) -> None:
        """Redraw at the next frame."""
        self._drawn = None

    def render_line(self, y: int) -> Strip:
        """One row, for Textual."""
        if y < len(self._rows):
            return _underlined(self._rows[y], self._hovered) if self._hovered else self._rows[y]
        return Strip.blank(self.content_size.width, Style(bgcolor=self.background_colors[1].rich_color))


def _underlined(row: Strip, meta: dict[str, Any]) -> Strip:
    """The row with the text underlined whose style has all of this meta data; not the blanks after it."""
    segments = []
    for segment in row:
        text, style, _ = segment
        if style is None or not meta.items() <= style.meta.items():
            segments.append(segment)
            continue
        words = text.rstrip()
        segments += [Segment(words, style + UNDERLINED), Segment(text[len(words) :], style)]
    return Strip(segments, row.cell_length)


def notice(lines: list[tuple[str, Style]], width: int, height: int) -> list[Strip]:
    """A message in the middle of an empty panel. Lines that are too long are wrapped."""
    lines = [(part, style) for text, style in lines for part in textwrap.wrap(text, max(10, width)) or [""]]
    top = max(0, (height - len(lines)) // 2)
    rows = [Line().to_strip(width)] * top
    rows += [
        Line().add(" " * max(0, (width - len(text)) // 2)).add(text, style).to_strip(width) for text, style in lines
    ]
    return rows[:height]


def waiting_notice(view: View, width: int, height: int, what: str, *, state: bool = False) -> list[Strip]:
    """Say why there is nothing to draw yet. With `state` it also says what the starting run is doing now."""
    if not view.connected and view.history.live:
        return notice([(safe(view.trouble) or "connecting to the run…", colours.DIM)] if state else [], width, height)
    if view.replay:
        unknown = {"picture": "pictures are not recorded", "count": "what the lens counts is not recorded"}
        return notice([(unknown.get(what, f"no {what} so far"), colours.DIM)], width, height)
    history = view.history
    reason = history.ended.reason if history.ended is not None else history.state.reason
    if state and history.started is None and reason:  # the whole reason, because the footer may have no room for it
        return notice([(line, colours.TEXT) for line in textwrap.wrap(safe(reason), max(10, width))], width, height)
    starting = {"importing torch": "importing torch…", "building": "setting up the run…"}
    first = "next" if view.history.segment else "first"
    waiting = {"running": f"waiting for the {first} {what}…", "paused": f"paused before the {first} {what}"}
    now = view.history.state.state
    words = (starting[now] if state else "") if now in starting else waiting.get(now, f"no {what}")
    return notice([(words, colours.DIM)], width, height)
