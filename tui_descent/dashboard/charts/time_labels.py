"""The row under the curve: step numbers, and each intervention's name under its mark."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.time_axis import Timeline, marks
from tui_descent.dashboard.text.line import Line, joined
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View

APART = 3


def time_row(view: View, timeline: Timeline, left: int) -> Line:
    """Step numbers, and under each intervention its name."""
    cells = [(" ", colours.DIM)] * timeline.columns
    taken = [False] * timeline.columns

    def write(column: int, text: str, style: Style, apart: int = 1) -> bool:
        end = column + len(text)
        if end > timeline.columns or any(taken[max(0, column - apart) : end + apart]):
            return False
        for n, character in enumerate(text):
            cells[column + n] = (character, style)
            taken[column + n] = True
        return True

    # The newest interventions matter most where there is no room for all of them.
    for column, text in reversed(marks(view, timeline)):
        label = "▲ " + "".join(c if cell_len(c) == 1 else "·" for c in plain(text, 28))
        if write(column, label, colours.MARK):
            continue
        if not (write(column - len(label) + 1, label[2:] + " ▲", colours.MARK) if column >= len(label) else False):
            write(column, "▲", colours.MARK)
    for column, text in timeline.ticks().items():
        # Farther from a name: `mark 600` would be read as one.
        write(column, text, colours.DIM, APART)
    return Line().put(" " * left).extend(joined([Segment(c, s) for c, s in cells]))
