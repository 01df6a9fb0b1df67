"""The row below a time axis: step numbers, and the name of each intervention at its mark."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.time_axis import TimeAxis, marks
from tui_descent.dashboard.text.line import Line, merge_segments
from tui_descent.dashboard.text.safe_text import cut, safe
from tui_descent.dashboard.view import View

TICK_DISTANCE, LABEL_WIDTH = 3, 28


def time_row(view: View, time_axis: TimeAxis, left: int, width: int) -> Strip:
    """The row, with `left` blanks before the axis."""
    cells = [(" ", colours.DIM)] * time_axis.columns
    taken = [False] * time_axis.columns

    def write(column: int, text: str, style: Style, distance: int = 1) -> bool:
        end = column + len(text)
        if end > time_axis.columns or any(taken[max(0, column - distance) : end + distance]):
            return False
        for n, character in enumerate(text):
            cells[column + n] = (character, style)
            taken[column + n] = True
        return True

    # The newest names are written first, because there may not be room for all.
    for column, text in reversed(marks(view, time_axis)):
        label = "▲ " + "".join(c if cell_len(c) == 1 else "·" for c in cut(safe(text), LABEL_WIDTH))
        if write(column, label, colours.MARK):
            continue
        if not (write(column - len(label) + 1, label[2:] + " ▲", colours.MARK) if column >= len(label) else False):
            write(column, "▲", colours.MARK)
    for column, text in time_axis.ticks().items():
        # Step numbers keep a distance from names, because `mark 600` would look like one text.
        write(column, text, colours.DIM, TICK_DISTANCE)
    row = merge_segments([Segment(character, style) for character, style in cells])
    return Line().add(" " * left).extend(row).to_strip(width)
