"""The output panel: what the script, or the trainer, has printed."""

from __future__ import annotations

from rich.cells import chop_cells
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.exit_status import script_failed_after_run

MAX_COLUMNS = 2000
OWN_TERMINAL = (
    "This script was not started by tui-descent:",
    "what it prints is in its own terminal.",
    "To see it here, start the script with:",
    "tui-descent exec -- python train.py",
)


class OutputPanel(Panel):
    """The newest lines that were printed. It scrolls."""

    help_text = (
        "What the script has printed; the newest line is at the bottom. Progress bars show their last state. You "
        "cannot type here: a script that reads from the terminal sees the end of its input (EOF) at once."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scrolled = 0
        self._lines: tuple[str, ...] = ()

    def scroll_by(self, rows: int) -> None:
        """Scroll towards older lines (positive) or newer ones."""
        self._scrolled = max(0, self._scrolled + rows)
        self.invalidate()

    def depends_on(self, view: View) -> object:
        """The printed lines; new steps do not change them."""
        return view.output, view.history.ended, view.history.started is None

    def heading(self, view: View) -> tuple[str, str]:
        if not view.output:
            return "Output", ""
        return "Output", f"{self._scrolled} lines below · ↓" if self._scrolled else "newest at the bottom"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Long lines are wrapped."""
        if not view.output:
            if view.own_terminal:
                return notice([(line, colours.DIM) for line in OWN_TERMINAL], width, height)
            who = "the trainer" if view.history.started and view.history.started.scenario else "the script"
            return notice([(f"{who} has not printed anything", colours.DIM)], width, height)
        rows: list[Strip] = []
        # Wrap no more lines than can be seen.
        for line in reversed(view.output):
            rows += [Line().add(part, _style(view)).to_strip(width) for part in reversed(_wrapped(line, width))]
            if len(rows) >= height + self._scrolled:
                break
        self._scrolled = min(self._scrolled, max(0, len(rows) - height))
        return rows[self._scrolled : self._scrolled + height][::-1]


def _wrapped(line: str, width: int) -> list[str]:
    return chop_cells(safe(line, MAX_COLUMNS), max(1, width)) or [""]


def _style(view: View) -> Style:
    ended = view.history.ended
    failed = ended is not None and (ended.status == "failed" or script_failed_after_run(ended))
    return colours.BRIGHT if failed else colours.TEXT
