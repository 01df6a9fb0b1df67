"""Classes of very different size: a bar for the loss of each size, from the most common classes to the rarest."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural, short, with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import ClassesPicture, ClassGroup

SIZE = 28  # columns before the bar
VALUES = 24  # columns after it
TOP = 1.4  # the longest bar, in losses of a guess


def draw(picture: ClassesPicture, width: int, height: int) -> list[Strip]:
    """`height` rows of `width` cells; there is a gap between the bars if there is room."""
    rows = [
        Line().add(f" {'training samples':<{SIZE - 1}}{'loss':<{_room(width)}}").add("held-out samples".rjust(VALUES))
    ]
    gaps = height >= 2 * len(picture.groups) + 3
    for group in picture.groups:
        rows += [Line()] * gaps
        rows.append(_row(group, picture.guess, width))
    rows += [Line(), Line().add(f" │ {short(picture.guess)} nats, the loss of a guess", colours.DIM)]
    rows += [Line() for _ in range(height - len(rows))]
    return [line.to_strip(width) for line in rows[: max(0, height)]]


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, ClassesPicture)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    classes = sum(group.classes for group in picture.groups)
    right = sum(group.classes * group.right for group in picture.groups) / classes
    line.add(f"{right:.0%}", colours.BRIGHT).add(" of the held-out samples are recognised", colours.DIM)
    return line.to_strip(width)


def _room(width: int) -> int:
    """Columns for the bars."""
    return max(4, width - SIZE - VALUES)


def _row(group: ClassGroup, guess: float, width: int) -> Line:
    classes = "1 class" if group.classes == 1 else f"{group.classes} classes"
    line = Line().fit(f" {classes} of {plural(group.samples, 'sample')}", SIZE)
    if not math.isfinite(group.loss):
        return line.add("the outputs are NaN or infinite", colours.ORANGE)
    room = _room(width)
    filled = round(min(group.loss / (TOP * guess), 1.0) * room)
    style = colours.level_style(round((0.35 + 0.65 * filled / room) * (colours.LEVELS - 1)))
    mark = int(room / TOP)  # the loss of a guess
    for column in range(room):
        line.add("━" if column < filled else "│" if column == mark else " ", style if column < filled else colours.DIM)
    line.add(f"{short(group.loss, digits=3):>7} nats", colours.BRIGHT)
    return line.add(f"{group.right:>6.0%} right", colours.DIM)
