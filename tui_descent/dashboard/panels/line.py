"""One row of the screen under construction."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import ink


class Line:
    """Styled text put side by side, counted in cells."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.width = 0

    def put(self, text: str, style: Style = ink.TEXT) -> Line:
        """Append text."""
        if text:
            self.segments.append(Segment(text, style))
            self.width += cell_len(text)
        return self

    def fit(self, text: str, width: int, style: Style = ink.TEXT) -> Line:
        """Append text padded or cut to exactly `width` cells."""
        return self.put(set_cell_size(text, max(0, width)), style)

    def extend(self, segments: Iterable[Segment]) -> Line:
        """Append what is styled already."""
        for segment in segments:
            self.segments.append(segment)
            self.width += segment.cell_length
        return self

    def at(self, column: int) -> Line:
        """Blanks up to a column."""
        return self.put(" " * (column - self.width))

    def strip(self, width: int, style: Style | None = None) -> Strip:
        """The finished row, exactly `width` cells; an ellipsis tells that something was cut."""
        strip = Strip(self.segments, self.width)
        if self.width > width > 0:
            strip = Strip([*strip.crop(0, width - 1), Segment("…", ink.DIM)], width)
        return strip.adjust_cell_length(width, style)


def joined(cells: list[Segment]) -> list[Segment]:
    """Neighbours in one style as one segment: fewer bytes on the wire."""
    joined: list[Segment] = []
    for cell in cells:
        if joined and (joined[-1].style == cell.style):
            joined[-1] = Segment(joined[-1].text + cell.text, cell.style)
        else:
            joined.append(cell)
    return joined
