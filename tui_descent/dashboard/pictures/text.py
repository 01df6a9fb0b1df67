"""The text: what the net writes, and below it held-out text with the loss of each character."""

from __future__ import annotations

import math
from array import array

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import TextPicture
from tui_descent.scenario.spec import SYMBOLS

BARS = " ▁▂▃▄▅▆▇█"
MOST_ROWS = 4  # of a bar
# The loss of a guess among all symbols: a character with this loss or more has the highest bar.
TOP = math.log(SYMBOLS)
LINE_FEED = "↵"
GAP = 2  # columns between two windows


def draw(picture: TextPicture, width: int, height: int) -> list[Strip]:
    """`height` rows of `width` cells. The lines of the net get at most a third of them."""
    rows = [Line().add(" the net writes, its newest characters in bold", colours.DIM)]
    rows += [_written(line, picture.new, width) for line in picture.lines[: max(1, height // 3)]]
    rows += [Line(), Line().add(" held-out text: a high bar is a badly predicted character", colours.DIM)]
    rows += _held_out(picture, width, height - len(rows))
    return [line.to_strip(width) for line in rows[: max(0, height)]]


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, TextPicture)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    line.add(short(picture.loss), colours.BRIGHT).add(" nats per character of the text below", colours.DIM)
    guessing = f", {short(TOP)} by guessing"
    return line.add(guessing if line.width + len(guessing) <= width else "", colours.DIM).to_strip(width)


def legend() -> str:
    """What the glyphs mean, as Textual markup."""
    return f"{LINE_FEED} line feed  ▁ 0 … █ {short(TOP)} nats"


def _written(text: str, new: int, width: int) -> Line:
    """The end of a line that the net writes, its newest characters bright."""
    shown = text.replace("\n", LINE_FEED)[-max(1, width - 2) :]
    old = max(0, len(shown) - new)
    return Line().add(" ").add(shown[:old], colours.TEXT).add(shown[old:], colours.BRIGHT)


def _held_out(picture: TextPicture, width: int, height: int) -> list[Line]:
    """The windows side by side, each a row of text and below it the bars, which are as high as there is room for. Long
    windows continue in the rows below.
    """
    losses = array("f", picture.losses)
    room = max(1, width - 2)
    pieces: list[tuple[str, array[float]]] = []
    at = 0
    for window in picture.windows:
        for first in range(0, len(window), room):
            text = window[first : first + room]
            pieces.append((text, losses[at + first : at + first + len(text)]))
        at += len(window)
    longest = max((len(text) for text, _ in pieces), default=1)
    across = max(1, (width - 1) // (longest + GAP))
    tall = min(max(1, height // max(1, -(-len(pieces) // across)) - 1), MOST_ROWS)
    rows: list[Line] = []
    for n in range(0, len(pieces), across):
        if len(rows) + 1 + tall > height:
            break
        lines = [Line() for _ in range(1 + tall)]
        for text, piece in pieces[n : n + across]:
            for line in lines:
                line.pad_to(max(1, line.width + GAP * bool(line.width)))
            for character, loss in zip(text, piece, strict=True):
                bar, style = _bar(loss, tall)
                for line, part in zip(lines, (LINE_FEED if character == "\n" else character, *bar), strict=True):
                    line.add(part, style)
        rows += lines
    return rows


def _bar(loss: float, rows: int) -> tuple[str, Style]:
    """The bar of a loss, a character per row from the top, and its style; a question mark if it is not finite."""
    if not math.isfinite(loss):
        return "?".rjust(rows), colours.RED
    share = min(max(loss / TOP, 0.0), 1.0)
    eighths = min(1 + int(share * 8 * rows), 8 * rows)
    bar = "".join(BARS[min(max(eighths - 8 * below, 0), 8)] for below in reversed(range(rows)))
    return bar, colours.level_style(round(share * (colours.LEVELS - 1)))
