"""The notice shown instead of the panels in a terminal that is too small."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

MIN_WIDTH, MIN_HEIGHT = 60, 20


class TooSmall(Widget):
    """Shows the size needed and the actual size."""

    def render(self) -> Text:
        have = self.app.size
        return Text(f"needs {MIN_WIDTH}×{MIN_HEIGHT}, this is {have.width}×{have.height}", justify="center")
