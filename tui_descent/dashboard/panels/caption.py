"""The caption panel, above the footer. It says what a demonstration is showing now, and is hidden if there is no
caption.
"""

from __future__ import annotations

import textwrap

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import Noted

MARK = " ▸ "
MAX_LINES = 3


class CaptionPanel(Panel, can_focus=False):
    """The newest caption of the run."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines = 0

    def show(self, view: View) -> bool:
        """Show the panel if there is a caption; hide it otherwise."""
        lines = len(_wrapped(view, self.app.size.width))
        if lines != self._lines:
            self.display, self._lines = bool(lines), lines
            self.styles.height = lines
        return super().show(view)

    def depends_on(self, view: View) -> object:
        return caption(view)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        return [
            Line().add(MARK if n == 0 else " " * len(MARK), colours.KEY).add(text, colours.BRIGHT).to_strip(width)
            for n, text in enumerate(_wrapped(view, width))
        ]


def caption(view: View) -> str:
    """The newest caption; empty if there is none."""
    notes = (entry for entry in reversed(view.history.log) if isinstance(entry, Noted) and entry.level == "caption")
    return next((note.text for note in notes), "")


def _wrapped(view: View, width: int) -> list[str]:
    return textwrap.wrap(safe(caption(view), 300), max(10, width - len(MARK) - 1))[:MAX_LINES]
