"""The notice shown instead of the panels in a terminal that is too small."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from tui_descent.dashboard.terminal_size import MIN_HEIGHT, MIN_WIDTH


class TooSmall(Widget):
    """Shows the size needed and the actual size."""

    def render(self) -> Text:
        have = self.app.size
        return Text(f"needs {MIN_WIDTH}×{MIN_HEIGHT}, this is {have.width}×{have.height}", justify="center")
