"""What rasters have in common: braille dots, lines cut off at the edges, and cells joined into segments."""

from __future__ import annotations

from collections.abc import Iterable

from rich.segment import Segment
from rich.style import Style

Point = tuple[float, float]
# The braille character of each set of dots, and the bit of each dot: [dot column][dot row from the top].
BRAILLE = [chr(0x2800 + dots) for dots in range(256)]
DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
# Coordinates are limited to this size, so nothing overflows.
FAR = 1e9


def limited(point: Point) -> Point:
    """The point, or one that is still far outside of every raster."""
    x, y = point
    return min(max(x, -FAR), FAR), min(max(y, -FAR), FAR)


def clipped(start: Point, end: Point, least: Point, most: Point) -> tuple[Point, Point] | None:
    """The part of a line inside a rectangle, as its two ends; None if there is none.

    Liang and Barsky's algorithm (ACM Transactions on Graphics 3(1), 1984).
    """
    enter, leave = 0.0, 1.0
    for a, b, low, high in zip(start, end, least, most, strict=True):
        if low <= a <= high and low <= b <= high:
            continue
        if a == b:
            return None
        first, last = sorted(((low - a) / (b - a), (high - a) / (b - a)))
        enter, leave = max(enter, first), min(leave, last)
    if enter > leave:
        return None
    (x0, y0), (x1, y1) = start, end
    return (x0 + enter * (x1 - x0), y0 + enter * (y1 - y0)), (x0 + leave * (x1 - x0), y0 + leave * (y1 - y0))


def joined(cells: Iterable[tuple[str, Style]]) -> list[Segment]:
    """Cells as segments, neighbours of the same style in one. A blank joins any neighbour on the same background."""
    segments: list[Segment] = []
    text, style = "", Style.null()
    for character, wanted in cells:
        if wanted is style or (character == " " and wanted.bgcolor == style.bgcolor):
            text += character
            continue
        if text:
            segments.append(Segment(text, style))
        text, style = character, wanted
    return [*segments, Segment(text, style)] if text else segments
