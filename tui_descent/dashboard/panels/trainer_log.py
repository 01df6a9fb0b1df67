"""The last lines of the log where a run or its script failed, above the conversation; hidden while all is well."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.ending import failed_after

MAX_LINES = 8


class EndingPanel(Panel, can_focus=False):
    """What the trainer wrote before it was gone."""

    def show(self, view: View) -> bool:
        """Appear when there is something to tell."""
        tail = _tail(view)
        if bool(tail) != self.display:
            self.display = bool(tail)
            self.styles.height = len(tail) + 2
        return super().show(view)

    def heading(self, view: View) -> tuple[str, str]:
        """The log's name is foreign text and goes into a row instead."""
        return "The trainer's last words", ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The newest lines."""
        return [Line().put(text, colours.TEXT).strip(width) for text in _tail(view)[-height:]]


def _tail(view: View) -> list[str]:
    ended = view.history.ended
    if ended is None or not (ended.status in ("lost", "failed") or failed_after(ended)):
        return []
    lines = [plain(line) for line in ended.log_tail[-MAX_LINES:]]
    return [*lines, f"all of it: {plain(ended.log_path)}"] if ended.log_path else lines
