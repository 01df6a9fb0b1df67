"""Data in the plane: which class the net predicts where, and the points on it."""

from __future__ import annotations

import math
from array import array

from rich.cells import cell_len, set_cell_size
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.picture import Depth, Picture, resampled
from tui_descent.dashboard.charts.plane import Plane, plane_size, with_axes
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import RegionsPicture
from tui_descent.scenario.validate import escape_controls

POINTS = ("●", "◆")
POINT_COLOURS = ("#56b4e9", "#e69f00")
WRONG, WRONG_COLOUR = "✕", "#ffffff"
# Tints of the two classes, from unsure to sure: the boundary is a dark valley.
_TINTS = (("#17232d", "#1d3240", "#244153", "#2c5068"), ("#241c0f", "#36280f", "#48340f", "#5b4110"))
_TINTS_256 = (("#262626", "#444444", "#005f87", "#005f87"), ("#303030", "#4e4e4e", "#875f00", "#875f00"))
UNSURE_BELOW = 0.25  # without backgrounds, cells that are less sure than this are dotted
MIN_NAME, BORDER = 4, 6  # cells: of a label at least; around the legend
SHADE_16, DOT_16 = "#808000", "#808080"


def draw(picture: RegionsPicture, width: int, height: int, depth: Depth) -> list[Strip]:
    """`height` rows of `width` cells; none if there is no room."""
    columns, rows = plane_size(width, height)
    if columns < 2 or rows < 2:
        return []
    drawn = Picture(columns, rows)
    by_half = class_one_ahead(picture, columns, 2 * rows)
    if depth in ("truecolor", "256"):
        tints = _TINTS_256 if depth == "256" else _TINTS
        for y, row in enumerate(by_half):
            drawn.halves[y] = [None if v != v else tints[v > 0][min(3, int(4 * abs(v)))] for v in row]
    else:
        _shade(drawn, by_half)
    _draw_points(drawn, Plane(picture.low, picture.high, columns, rows), picture)
    across, up = (Axis(low, high, False) for low, high in zip(picture.low, picture.high, strict=True))
    return with_axes(drawn, across, up, width)


def class_one_ahead(picture: RegionsPicture, columns: int, half_rows: int) -> list[list[float]]:
    """How far the net prefers class 1, from -1 to 1, by half cell: above 0 it predicts class 1. NaN if not finite."""
    values = [(byte - 127.5) / 127.5 if byte else math.nan for byte in picture.predictions]
    return resampled(values, picture.columns, picture.rows, columns, half_rows)


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    assert isinstance(taken.picture, RegionsPicture)
    right, count = sum(taken.picture.right), len(taken.picture.right)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    if not any(taken.picture.predictions):
        return line.add("the outputs are NaN or infinite", colours.ORANGE).to_strip(width)
    line.add(f"{with_commas(count - right)}", colours.BRIGHT).add(f" of {with_commas(count)} ", colours.DIM)
    return line.add("training points are on the wrong side", colours.DIM).to_strip(width)


def legend(picture: RegionsPicture, depth: Depth, width: int) -> str:
    """What the glyphs mean, as Textual markup. The labels from the user's file share the room that is left."""
    unsure = "dark: unsure" if depth in ("truecolor", "256") else "· unsure"
    room = (width - cell_len(f"●   ◆   {WRONG} wrong  {unsure}") - BORDER) // 2
    names = [_shortened(escape_controls(name), max(MIN_NAME, room)) for name in picture.names or ("class 0", "class 1")]
    # A blank before the closing tag, because a label may end in a backslash.
    classes = [f"[{POINT_COLOURS[n]}]{POINTS[n]} {_escaped(name)} [/] " for n, name in enumerate(names)]
    return f"{''.join(classes)}[{WRONG_COLOUR}]{WRONG} wrong[/]  {unsure}"


def _escaped(text: str) -> str:
    """The text as Textual markup without tags. `textual.markup.escape` leaves some of them, like `[2J[/]`."""
    return text.replace("[", r"\[")


def _shortened(name: str, cells: int) -> str:
    """The name, or its first part with an ellipsis if it needs more than so many cells."""
    return name if cell_len(name) <= cells else f"{set_cell_size(name, cells - 1).rstrip()}…"


def _shade(drawn: Picture, by_half: list[list[float]]) -> None:
    """Without backgrounds: class 1 is shaded, class 0 is blank, and what is unsure between them is dotted."""
    for y in range(drawn.rows):
        for x, (upper, lower) in enumerate(zip(by_half[2 * y], by_half[2 * y + 1], strict=True)):
            ahead = (upper + lower) / 2
            if abs(ahead) < UNSURE_BELOW:
                drawn.glyph(x, y, "·", DOT_16)
            elif ahead > 0:
                drawn.glyph(x, y, "░", SHADE_16)


def _draw_points(drawn: Picture, plane: Plane, picture: RegionsPicture) -> None:
    """Draw the points; wrong ones last, so that no other point covers them."""
    values = array("f", picture.points)
    points = list(zip(values[::2], values[1::2], picture.classes, picture.right, strict=True))
    for x, y, class_, right in sorted(points, key=lambda point: -point[3]):
        if (cell := plane.cell(x, y)) is not None:
            glyph, colour = (POINTS[class_ % 2], POINT_COLOURS[class_ % 2]) if right else (WRONG, WRONG_COLOUR)
            drawn.glyph(*cell, glyph, colour)
