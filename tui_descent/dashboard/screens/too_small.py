"""Shown instead of everything where there is no room for the picture."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

MIN_WIDTH, MIN_HEIGHT = 60, 20


class TooSmall(Widget):
    """What it needs and what it has."""

    def render(self) -> Text:
        """One line, in the middle by the stylesheet."""
        have = self.app.size
        return Text(f"needs {MIN_WIDTH}×{MIN_HEIGHT}, this is {have.width}×{have.height}", justify="center")
