"""A two-layer net: how much of each mode it has learnt, as curves over time."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.picture import Picture
from tui_descent.dashboard.charts.plane import Plane, plane_size, with_axes
from tui_descent.dashboard.lane_marks import lane_mark
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import ModesPicture

TARGET = "#4a5260"
MARK_EVERY = 14  # columns from one glyph of a curve to the next
LEAST_STEPS = 50  # the time axis is at least this long
FARTHEST = 50  # the axis shows overshooting up to this multiple of the largest singular value
LEARNT = 0.5  # the share of its singular value from which a mode counts as learnt


def draw(picture: ModesPicture, width: int, height: int) -> list[Strip]:
    """`height` rows of `width` cells; none if there is no room."""
    columns, rows = plane_size(width, height)
    if columns < 2 or rows < 2:
        return []
    steps, curves = curves_of(picture)
    across = Axis(0.0, float(max(LEAST_STEPS, *steps, 0)), False)
    most = max(picture.targets)
    finite = [value for curve in curves for value in curve if not math.isnan(value)]
    values = [min(max(value, -FARTHEST * most), FARTHEST * most) for value in finite]
    up = Axis(min([-0.05 * most, *values]), max([1.1 * most, *values]), False)
    drawn, plane = Picture(columns, rows), Plane((across.low, up.low), (across.high, up.high), columns, rows)
    for target in picture.targets:
        for column in range(0, columns, 2):
            if (cell := plane.cell(across.low, target)) is not None:
                drawn.glyph(column, cell[1], "╌", TARGET)
    for number, curve in enumerate(curves):
        mark, offset = lane_mark(number), number * MARK_EVERY // len(curves)
        dots = [plane.dot(step, value) for step, value in zip(steps, curve, strict=True)]
        for start, end in pairwise(dots):
            drawn.line(start, end, mark.colour)
        cells = dict(cell for step, value in zip(steps, curve, strict=True) if (cell := plane.cell(step, value)))
        for column, row in cells.items():
            if column % MARK_EVERY == offset or column == max(cells):
                drawn.glyph(column, row, mark.glyph, mark.colour, bold=True)
    return with_axes(drawn, across, up, width)


def curves_of(picture: ModesPicture) -> tuple[list[int], list[list[float]]]:
    """The steps, and the strengths of each mode at these steps."""
    steps, values, count = array("q", picture.steps), array("f", picture.strengths), len(picture.targets)
    return list(steps), [list(values[mode::count]) for mode in range(count)]


def title(picture: ModesPicture) -> str:
    """What is shown. A net with one input and one output has a single mode, which is its output for the input 1."""
    return "the net's output f over time" if len(picture.targets) == 1 else "how much of each mode is learnt"


def legend(picture: ModesPicture) -> str:
    """What the glyphs mean, for the panel's border, as Textual markup."""
    if len(picture.targets) == 1:
        return f"[{lane_mark(0).colour}]{lane_mark(0).glyph}[/] f  ╌ {picture.targets[0]:g}, to be learnt"
    marks = [(lane_mark(n), target) for n, target in enumerate(picture.targets)]
    return "  ".join(f"[{mark.colour}]{mark.glyph}[/] s = {target:g}" for mark, target in marks)


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, ModesPicture)
    _, curves = curves_of(picture)
    now = [curve[-1] for curve in curves if curve]
    line = Line().add(" step ", colours.DIM).add(with_commas(taken.step), colours.BRIGHT)
    if len(picture.targets) == 1:
        line.add("  f = ", colours.DIM).add(short(now[0], digits=3) if now else "–", colours.BRIGHT)
        return line.to_strip(width)
    learnt = sum(value > LEARNT * target for value, target in zip(now, picture.targets, strict=False))
    line.add("  learnt ", colours.DIM).add(f"{learnt} of {len(now)} modes", colours.BRIGHT).add("  now", colours.DIM)
    for number, value in enumerate(now):
        line.add(f"  {lane_mark(number).glyph} ", lane_mark(number).style).add(short(value, digits=3), colours.TEXT)
    return line.to_strip(width)
