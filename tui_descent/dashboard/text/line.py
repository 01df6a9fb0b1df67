"""Build one screen row from styled text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours


class Line:
    """Styled text, appended piece by piece; `width` counts the cells."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.width = 0

    def add(self, text: str, style: Style = colours.TEXT) -> Line:
        """Append text.

        Text in the same style joins the previous segment, because each change of style costs twenty bytes.
        """
        if not text:
            return self
        self.width += cell_len(text)
        before = self.segments[-1] if self.segments else None
        if before is not None and before.style is not None and _looks_the_same(before.style, text, style):
            self.segments[-1] = Segment(before.text + text, before.style)
        else:
            self.segments.append(Segment(text, style))
        return self

    def fit(self, text: str, width: int, style: Style = colours.TEXT) -> Line:
        """Append text, padded or cut to exactly `width` cells."""
        return self.add(set_cell_size(text, max(0, width)), style)

    def extend(self, segments: Iterable[Segment]) -> Line:
        """Append styled segments."""
        for segment in segments:
            self.add(segment.text, segment.style or colours.TEXT)
        return self

    def pad_to(self, column: int) -> Line:
        """Append blanks up to this column."""
        return self.add(" " * (column - self.width))

    def to_strip(self, width: int, style: Style | None = None) -> Strip:
        """The finished row of exactly `width` cells; an ellipsis marks text that was cut."""
        if self.width < width:
            return Strip([*self.segments, Segment(" " * (width - self.width), style)], width)
        strip = Strip(self.segments, self.width)
        if self.width > width > 0:
            strip = Strip([*strip.crop(0, width - 1), Segment("…", colours.DIM)], width)
        return strip.adjust_cell_length(width, style)


def _looks_the_same(before: Style, text: str, style: Style) -> bool:
    """Whether `text` looks the same in the style `before`. A blank does, unless one style has a background."""
    return style == before or (text.isspace() and before.bgcolor is None and style.bgcolor is None)


def merge_segments(cells: list[Segment]) -> list[Segment]:
    """Merge neighbours of the same style, which sends fewer bytes to the terminal."""
    merged: list[Segment] = []
    for cell in cells:
        if merged and merged[-1].style == cell.style:
            merged[-1] = Segment(merged[-1].text + cell.text, cell.style)
        else:
            merged.append(cell)
    return merged
