"""A modular addition: the table of all sums, a cell for each pair, bright where the net is right."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.picture import Depth, Picture
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import AdditionPicture

HELD_OUT, RIGHT = 1, 2  # the bits of a cell
# By the cell's bits: trained wrong, held out wrong, trained right, held out right.
_COLOURS = ("#1d3240", "#3a2a10", "#3f7fa6", "#f0b429")
_COLOURS_256 = ("#262626", "#303030", "#5f87af", "#ffaf00")
_COLOURS_16 = ("#000000", "#000000", "#0000ff", "#ffff00")
GUTTER = 5  # columns for the numbers of a
LABEL_EVERY = 5  # rows


def draw(picture: AdditionPicture, width: int, height: int, depth: Depth) -> list[Strip]:
    """`height` rows of `width` cells: a downwards, b to the right. A pair takes half a cell, or two whole ones if there
    is room for all. What does not fit is left out, and a note says so if there is room for it.
    """
    p = picture.modulus
    large = width >= GUTTER + 2 * p and height >= p
    columns, halves = (2, 2) if large else (1, 1)
    table = Picture(min(columns * p, max(0, width - GUTTER)), min((halves * p + 1) // 2, max(0, height)))
    for half in range(min(halves * p, 2 * table.rows)):
        row = picture.cells[half // halves * p : (half // halves + 1) * p]
        for column in range(table.columns):
            _paint(table, column, half, row[column // columns], depth)
    rows = []
    for y, segments in enumerate(table.segments()):
        label = str(2 * y // halves) if y % LABEL_EVERY == 0 else ""
        rows.append(Line().add(f"{'a ' * (y == 0)}{label}".rjust(GUTTER - 1) + " ", colours.DIM).extend(segments))
    note = f"  a from {2 * table.rows // halves} on: needs more rows"
    if rows and 2 * table.rows < halves * p and rows[-1].width + len(note) <= width:
        rows[-1].add(note, colours.DIM)
    rows += [Line() for _ in range(height - len(rows))]
    return [line.to_strip(width) for line in rows]


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, AdditionPicture)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    line.add("right: ", colours.DIM)
    for what, right, count in (
        ("trained ", picture.trained_right, picture.trained),
        ("  held out ", picture.held_out_right, picture.held_out),
    ):
        line.add(what, colours.DIM).add(with_commas(right), colours.BRIGHT).add(f"/{with_commas(count)}", colours.DIM)
    return line.to_strip(width)


def legend(depth: Depth) -> str:
    """What the colours mean, as Textual markup."""
    if depth == "none":
        return "█ right"
    palette = _palette(depth)
    return f"[{palette[RIGHT]}]■[/] trained  [{palette[HELD_OUT + RIGHT]}]■[/] held out  dark: wrong"


def _palette(depth: Depth) -> tuple[str, ...]:
    return {"truecolor": _COLOURS, "256": _COLOURS_256}.get(depth, _COLOURS_16)


def _paint(table: Picture, column: int, half: int, cell: int, depth: Depth) -> None:
    if depth != "none":
        table.halves[half][column] = _palette(depth)[cell]
    elif cell & RIGHT:  # without colours, only sums that are right are drawn
        table.halves[half][column] = "#ffffff"
        upper, lower = (table.halves[n][column] for n in (half // 2 * 2, half // 2 * 2 + 1))
        table.glyph(column, half // 2, "█" if upper and lower else "▀" if upper else "▄", "#ffffff")
