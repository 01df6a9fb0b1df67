"""The trainer-log panel, above the footer. After a failure it shows the last lines of the log, or the reason; otherwise
it is hidden.
"""

from __future__ import annotations

import textwrap

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.exit_status import script_failed_after_run

MAX_LINES = 8
FRAME = 2  # cells of the border


class TrainerLogPanel(Panel, can_focus=False):
    """The last lines that the trainer printed, or the whole reason if there are none to show."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown = 0

    def show(self, view: View) -> bool:
        """Show the panel if there are lines to show; hide it otherwise."""
        tail = _tail(view, self.app.size.width - FRAME)
        if bool(tail) != self.display or len(tail) != self._shown:
            self.display, self._shown = bool(tail), len(tail)
            self.styles.height = len(tail) + 2
        return super().show(view)

    def heading(self, view: View) -> tuple[str, str]:
        """The log's path is a row, because borders must not contain text from outside the program."""
        ended = view.history.ended
        return ("Last lines of the trainer's log" if ended is not None and ended.log_tail else "Why the run failed"), ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        return [Line().add(text, colours.TEXT).to_strip(width) for text in _tail(view, width)[-height:]]


def _tail(view: View, width: int) -> list[str]:
    """The last lines, then the log's path. The path is shown in full, on several rows if necessary, because people copy
    it.
    """
    ended = view.history.ended
    if ended is None or not (ended.status in ("lost", "failed") or script_failed_after_run(ended)):
        return []
    lines = [safe(line) for line in ended.log_tail[-MAX_LINES:]]
    if not lines and ended.log_path:
        lines = textwrap.wrap(safe(ended.reason), max(10, width))[:MAX_LINES]
    path = f"full log: {safe(ended.log_path)}" if ended.log_path and lines else ""
    return [*lines, *(path[n : n + width] for n in range(0, len(path), max(1, width)))]
