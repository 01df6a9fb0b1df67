"""A race on a test surface: the contour map, or the curve, with the path of each lane."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.picture import Depth, Picture
from tui_descent.dashboard.charts.plane import Plane, plane_size, with_axes
from tui_descent.dashboard.lane_marks import LaneMark, lane_mark
from tui_descent.dashboard.pictures import surface
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import LanePath, RacePicture

MARK_EVERY = 26.0  # dots along a path from one glyph to the next
START_COLOUR = "#ffffff"

Position = tuple[float, ...]


def draw(picture: RacePicture, width: int, height: int, depth: Depth, maps: surface.ContourMaps) -> list[Strip]:
    """`height` rows of `width` cells; none if there is no room."""
    columns, rows = plane_size(width, height)
    if columns < 2 or rows < 2:
        return []
    ground = picture.surface
    paths = [positions(lane, len(ground.low)) for lane in picture.lanes]
    if len(ground.low) == 1:
        plane, losses = surface.curve_plane(ground, columns, rows)
        drawn = Picture(columns, rows)
        surface.draw_curve(drawn, plane, losses)
        for number, path in enumerate(paths):
            mark = lane_mark(number)
            for n, (x,) in enumerate(path):
                if (cell := plane.cell(x, surface.loss_at(losses, plane, x))) is not None:
                    drawn.glyph(*cell, mark.glyph if n == len(path) - 1 else "•", mark.colour, bold=True)
    else:
        drawn = maps.ground(ground, columns, rows, depth).copy()
        plane = Plane(ground.low, ground.high, columns, rows)
        _draw_paths(drawn, plane, paths)
        surface.draw_critical(drawn, plane, ground)
        _draw_ends(drawn, plane, paths)
    across, up = (Axis(low, high, False) for low, high in zip(plane.low, plane.high, strict=True))
    return with_axes(drawn, across, up, width)


def positions(lane: LanePath, size: int) -> list[Position]:
    """The positions of a lane's path, the oldest first."""
    values = array("f", lane.path)
    return [tuple(values[n : n + size]) for n in range(0, len(values), size)]


def _draw_paths(drawn: Picture, plane: Plane, paths: list[list[Position]]) -> None:
    """Each path as a line, with the lane's glyph at equal distances along it. Lanes on the same path take turns."""
    for number, path in enumerate(paths):
        for start, end in pairwise(plane.dot(*position) for position in path):
            drawn.line(start, end, lane_mark(number).colour)
    for number, path in enumerate(paths):
        mark, left = lane_mark(number), MARK_EVERY * (0.5 + number / len(paths))
        for start, end in pairwise(plane.dot(*position) for position in path):
            left = _draw_marks(drawn, start, end, left, mark)


def _draw_marks(
    drawn: Picture, start: tuple[float, float], end: tuple[float, float], left: float, mark: LaneMark
) -> float:
    """Draw the glyphs of one piece of a path. The first comes after `left` dots; returns what is left after the end."""
    length = math.dist(start, end)
    if not length < 1e4:  # far outside of the picture, or not finite
        return left
    while left < length:
        share = left / length
        x, y = (a + (b - a) * share for a, b in zip(start, end, strict=True))
        drawn.glyph(round(x) // 2, round(y) // 4, mark.glyph, mark.colour)
        left += MARK_EVERY
    return left - length


def _draw_ends(drawn: Picture, plane: Plane, paths: list[list[Position]]) -> None:
    """The common start, and the current position of each lane. Of several in one cell, the first lane's is seen."""
    if paths and paths[0] and (cell := plane.cell(*paths[0][0])) is not None:
        drawn.glyph(*cell, "○", START_COLOUR)
    for number, path in reversed(list(enumerate(paths))):
        if path and (cell := plane.cell(*path[-1])) is not None:
            drawn.glyph(*cell, lane_mark(number).glyph, lane_mark(number).colour, bold=True)


def legend(picture: RacePicture) -> str:
    """What the glyphs mean, for the panel's border, as Textual markup. The lanes are named in the table of the race."""
    critical = [f"[{colour}]{text}[/]" for text, colour in surface.critical_legend(picture.surface)]
    return "  ".join(["○ start", *critical])


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    line = Line().add(" after ", colours.DIM).add(with_commas(taken.step), colours.BRIGHT)
    return line.add(" steps", colours.DIM).to_strip(width)
