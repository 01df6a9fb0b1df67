"""One row of the screen under construction."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours


class Line:
    """Styled text put side by side, counted in cells."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.width = 0

    def put(self, text: str, style: Style = colours.TEXT) -> Line:
        """Append text. What can be said in the style before is: each change of style costs twenty bytes on the wire."""
        if not text:
            return self
        self.width += cell_len(text)
        before = self.segments[-1] if self.segments else None
        if before is not None and before.style is not None and _joins(before.style, text, style):
            self.segments[-1] = Segment(before.text + text, before.style)
        else:
            self.segments.append(Segment(text, style))
        return self

    def fit(self, text: str, width: int, style: Style = colours.TEXT) -> Line:
        """Append text padded or cut to exactly `width` cells."""
        return self.put(set_cell_size(text, max(0, width)), style)

    def extend(self, segments: Iterable[Segment]) -> Line:
        """Append what is styled already."""
        for segment in segments:
            self.put(segment.text, segment.style or colours.TEXT)
        return self

    def at(self, column: int) -> Line:
        """Blanks up to a column."""
        return self.put(" " * (column - self.width))

    def strip(self, width: int, style: Style | None = None) -> Strip:
        """The finished row, exactly `width` cells; an ellipsis tells that something was cut."""
        strip = Strip(self.segments, self.width)
        if self.width > width > 0:
            strip = Strip([*strip.crop(0, width - 1), Segment("…", colours.DIM)], width)
        return strip.adjust_cell_length(width, style)


def _joins(before: Style, text: str, style: Style) -> bool:
    """Blanks have no colour of their own, unless a ground is painted."""
    return style == before or (text.isspace() and before.bgcolor is None and style.bgcolor is None)


def joined(cells: list[Segment]) -> list[Segment]:
    """Neighbours in one style as one segment: fewer bytes on the wire."""
    joined: list[Segment] = []
    for cell in cells:
        if joined and (joined[-1].style == cell.style):
            joined[-1] = Segment(joined[-1].text + cell.text, cell.style)
        else:
            joined.append(cell)
    return joined
