"""The row below a time axis: step numbers, and the name of each intervention at its mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.time_axis import Mark, TimeAxis, marks
from tui_descent.dashboard.text.line import Line, merge_segments
from tui_descent.dashboard.text.safe_text import cut, safe
from tui_descent.dashboard.view import View

# Blanks between two names, and between a step number and anything else: `mark 600` would look like one text.
NAME_DISTANCE, TICK_DISTANCE = 2, 3
LABEL_WIDTH, SHORT_WIDTH = 28, 10


def time_row(view: View, time_axis: TimeAxis, left: int, width: int) -> Strip:
    """The row, with `left` blanks before the axis.

    Each mark has an arrow. Its name is to the right of it, or else to the left, in full or shortened; it is left out if
    there is no room.
    """
    row = _Row(time_axis.columns)
    by_column: dict[int, list[Mark]] = {}
    for mark in marks(view, time_axis):
        by_column.setdefault(mark.column, []).append(mark)
    for column in by_column:
        row.write(column, "▲", colours.MARK)
    # The newest names are written first, because there may not be room for all.
    for column in sorted(by_column, reverse=True):
        for name in _names(by_column[column]):
            after, before = column + 2, column - 1 - len(name)
            if row.is_free(column + 1, after + len(name) + NAME_DISTANCE, needed=after + len(name)):
                row.write(after, name, colours.MARK)
                break
            if before >= 0 and row.is_free(before - NAME_DISTANCE, column):
                row.write(before, name, colours.MARK)
                break
    for column, text in time_axis.ticks().items():
        end = column + len(text)
        if row.is_free(column - TICK_DISTANCE, end + TICK_DISTANCE, needed=end):
            row.write(column, text, colours.DIM)
    return Line().add(" " * left).extend(row.segments()).to_strip(width)


class _Row:
    """Cells that are written once."""

    def __init__(self, columns: int) -> None:
        self._cells: list[tuple[str, Style]] = [(" ", colours.DIM)] * columns
        self._taken = [False] * columns

    def is_free(self, start: int, end: int, needed: int = 0) -> bool:
        """Whether nothing is written in these columns, and the row has the first `needed` columns."""
        return needed <= len(self._cells) and not any(self._taken[max(0, start) : end])

    def write(self, column: int, text: str, style: Style) -> None:
        for n, character in enumerate(text, column):
            self._cells[n], self._taken[n] = (character, style), True

    def segments(self) -> list[Segment]:
        return merge_segments([Segment(character, style) for character, style in self._cells])


def _names(found: Sequence[Mark]) -> Iterator[str]:
    """The names of the marks in one column, from long to short. Of several changes of a knob the last one counts."""
    newest = {mark.short: mark for mark in found}
    full, short = (", ".join(texts) for texts in zip(*((m.text, m.short) for m in newest.values()), strict=True))
    shortest = f"{len(newest)} changes" if len(newest) > 1 else short
    for name, most in ((full, LABEL_WIDTH), (short, LABEL_WIDTH), (shortest, SHORT_WIDTH)):
        name = "".join(c if cell_len(c) == 1 else "·" for c in safe(name))
        if len(name) <= most or len(newest) == 1:
            yield cut(name, most)
