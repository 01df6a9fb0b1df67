"""The loss of a small net against its index: the run's path from the upper right to the lower left, and saddles."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis, axis_over
from tui_descent.dashboard.charts.picture import Picture
from tui_descent.dashboard.charts.plane import Plane, plane_size, with_axes
from tui_descent.dashboard.pictures.surface import CRITICAL
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural, short, with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import IndexPicture

NEW_WEIGHTS = 3.0  # a loss that is so many times as large as the one before: another path begins
PATH, NOW = "#f5d052", "#ffffff"
LEAST_LOSS = 1e-3  # smaller losses are drawn at the lower end of the axis: at a minimum the logarithm has none


def draw(picture: IndexPicture, width: int, height: int) -> list[Strip]:
    """`height` rows of `width` cells; none if there is no room."""
    columns, rows = plane_size(width, height)
    if columns < 2 or rows < 2:
        return []
    path = path_of(picture)
    shown = [(index, max(loss, LEAST_LOSS)) for index, loss in path if math.isfinite(loss)]
    losses = [loss for _, loss in shown] + [max(point.loss, LEAST_LOSS) for point in picture.found]
    up = axis_over(losses, log=True)
    most = max([index for index, _ in path] + [point.index for point in picture.found] + [1.0])
    across = Axis(-0.06 * most, 1.08 * most, False)
    drawn, plane = Picture(columns, rows), Plane((across.low, 0.0), (across.high, 1.0), columns, rows)
    places = [(index, up.position(loss)) for index, loss in shown]
    for n, (start, end) in enumerate(pairwise(plane.dot(*place) for place in places)):
        if shown[n + 1][1] <= NEW_WEIGHTS * shown[n][1]:
            drawn.line(start, end, PATH)
    for point in picture.found:
        glyph, colour = CRITICAL[point.kind]
        if (cell := plane.cell(point.index, up.position(max(point.loss, LEAST_LOSS)))) is not None:
            for n, character in enumerate(f"{glyph}{point.index}" if point.kind == "saddle" else glyph):
                drawn.glyph(cell[0] + n, cell[1], character, colour, bold=True)
    if places and (cell := plane.cell(*places[-1])) is not None:
        drawn.glyph(*cell, "●", NOW, bold=True)
    return with_axes(drawn, across, up, width)


def path_of(picture: IndexPicture) -> list[tuple[float, float]]:
    """Index and loss along the run, the oldest first."""
    values = array("f", picture.path)
    return list(zip(values[::2], values[1::2], strict=True))


def legend() -> str:
    """What the glyphs mean, for the panel's border, as Textual markup."""
    saddle, minimum = (CRITICAL[kind] for kind in ("saddle", "minimum"))
    words = f"[{saddle[1]}]{saddle[0]}n saddle of index n[/]  [{minimum[1]}]{minimum[0]} minimum[/]"
    return f"[{PATH}]━[/] path  ● now  {words}"


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, IndexPicture)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    if path := path_of(picture):
        index, loss = path[-1]
        line.add("index ", colours.DIM).add(f"{index:.0f} of {picture.parameters}  ", colours.BRIGHT)
        line.add("loss ", colours.DIM).add(f"{short(loss)}  ", colours.BRIGHT)
    saddles = sum(point.kind == "saddle" for point in picture.found)
    return line.add(f"found: {plural(saddles, 'saddle')}", colours.DIM).to_strip(width)
