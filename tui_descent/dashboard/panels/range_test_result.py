"""The base class of the two panels in the range-test dialog."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.view import View
from tui_descent.protocol.range_test import RangeTestCompleted


class RangeTestResultPanel(Panel, can_focus=False):
    """Draws a range test's result, or a message while there is none."""

    result: RangeTestCompleted | None = None
    message: str = ""

    def set_result(self, result: RangeTestCompleted | None, message: str) -> None:
        """Set what the next `show` draws."""
        self.result, self.message = result, message

    def depends_on(self, view: View) -> object:
        """The result or message, but not the run."""
        return self.result, self.message

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        if self.result is None:
            return notice([(self.message, colours.DIM)], width, height)
        return self.plot(self.result, width, height)

    def plot(self, result: RangeTestCompleted, width: int, height: int) -> list[Strip]:
        """Draw the result in `height` rows."""
        raise NotImplementedError
