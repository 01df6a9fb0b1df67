"""Turns Textual's screen updates into few bytes: only cells that look different from what the terminal shows are sent.

Textual sends each changed row of a widget whole, and all codes of a style at each change of style. Here an update is
compared with the cells that were sent last. A colour or attribute is sent only if it differs from that of the previous
cell, and a blank needs no text colour. If a version of Textual has other classes of updates, Textual draws by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.color import ColorSystem
from rich.console import Console, RenderableType
from rich.style import Style
from textual.strip import Strip

if TYPE_CHECKING:
    from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
else:
    try:
        from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
    except ImportError:
        CompositorUpdate, ChopsUpdate, LayoutUpdate = object, None, None

# The arguments of Textual's updates. The classes are private: with other arguments, nothing is shortened.
_ARGUMENTS = {LayoutUpdate: ["strips", "region"], ChopsUpdate: ["chops", "spans", "chop_ends"]}
CAN_SHORTEN = all(kind and list(signature(kind).parameters) == names for kind, names in _ARGUMENTS.items())

# Characters that certainly take one cell: not wide, not combining. A piece of a row with other characters is always
# sent whole.
_ONE_CELL_EACH = re.compile(
    "[ -~\u00a0-\u00ac\u00ae-\u02ff\u0370-\u0482\u048a-\u04ff\u1d00-\u1dbf\u2010-\u2027\u2030-\u205e\u2070-\u209c"
    "\u2100-\u2319\u2400-\u25fc\u2713-\u2718\u2800-\u28ff]*"
)
# Up to this many unchanged cells between two changed ones are sent again, because skipping them takes about as many
# bytes.
MAX_RESENT = 4
# SGR codes by rich's attribute bit: bold, dim, italic, underline, blink, blink2, reverse, conceal, strike, underline2,
# frame, encircle, overline; and those that can be seen on a blank.
_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "21", "51", "52", "53")
_SEEN_ON_BLANK = sum(1 << bit for bit in (3, 6, 8, 9, 10, 11, 12))
RESET = "\x1b[0m"


class Look(NamedTuple):
    """How a cell looks: SGR codes of its colours, and bits of its attributes.

    A blank's text colour is empty, because it cannot be seen. The same holds for attributes that cannot be seen on a
    blank.
    """

    colour: str
    background: str
    attributes: int


class Cell(NamedTuple):
    """A character and its look."""

    character: str
    look: Look


class _Piece(NamedTuple):
    """A segment's characters, and whether each of them takes one cell."""

    cells: tuple[Cell, ...]
    one_cell_each: bool


Cells = list[Cell | None]
_PLAIN = Look("39", "49", 0)


class ScreenWriter:
    """Remembers what the terminal shows, as far as it was drawn with updates from `shortened`."""

    def __init__(self) -> None:
        self._rows: list[Cells] = []  # None: unknown

    def forget(self) -> None:
        """Forget what the terminal shows, because it may have changed by itself."""
        self._rows = []

    def shortened(self, update: RenderableType | None, *, repair: bool = True) -> RenderableType | None:
        """An update that makes the screen look the same with fewer bytes; any other object is returned as it is.

        With `repair`, an update of the whole screen is sent whole. That repairs a screen to which another program has
        written.
        """
        if CAN_SHORTEN and isinstance(update, LayoutUpdate | ChopsUpdate):
            return cast(RenderableType, _Shortened(self, update, repair))
        return update

    def text_of(self, update: LayoutUpdate | ChopsUpdate, console: Console, *, repair: bool) -> str:
        """What to write to the terminal."""
        pen = _Pen()
        system = console._color_system
        if isinstance(update, LayoutUpdate):
            if repair:
                self.forget()
            for y, strips in enumerate(update.strips, update.region.y):
                x = update.region.x
                for strip in strips:
                    self._draw(pen, y, x, strip, system)
                    x += strip.cell_length
        else:
            for y, first, end in update.spans:
                for chop_end, (x, chop) in zip(update.chop_ends[y], update.chops[y].items(), strict=True):
                    if chop is not None and x < end and chop_end > first:
                        self._draw(pen, y, x, chop, system)
        return pen.finished()

    def _draw(self, pen: _Pen, y: int, x: int, strip: Strip, system: ColorSystem | None) -> None:
        end = x + strip.cell_length
        known = self._row(y, end)
        pieces = [_piece(text, style, system) for text, style, _ in strip]
        cells = [cell for piece in pieces for cell in piece.cells]
        if not all(piece.one_cell_each for piece in pieces):
            pen.move(y, x)
            for text, style, _ in strip:
                pen.write(Cell(text, _looks(style, system)[0]))
            pen.lose_place()  # the terminal may find a character wider or narrower
            known[x:end] = [None] * (end - x)
            return
        before = known[x:end]
        if cells == before:
            return
        known[x:end] = cells
        for first, last in _changed(cells, before):
            pen.move(y, x + first)
            for cell in cells[first : last + 1]:
                pen.write(cell)

    def _row(self, y: int, width: int) -> Cells:
        self._rows += [[] for _ in range(y + 1 - len(self._rows))]
        row = self._rows[y]
        row += [None] * (width - len(row))
        return row


class _Shortened(CompositorUpdate):
    """Textual calls `render_segments` when it writes the update. An update that it drops must not be remembered."""

    def __init__(self, writer: ScreenWriter, update: LayoutUpdate | ChopsUpdate, repair: bool) -> None:
        self._writer, self._update, self._repair = writer, update, repair

    def render_segments(self, console: Console) -> str:
        return self._writer.text_of(self._update, console, repair=self._repair)


class _Pen:
    """Collects the text for one update: the cells, and the codes for the cursor and the looks."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._look = _PLAIN
        self._place: tuple[int, int] | None = None

    def move(self, y: int, x: int) -> None:
        ahead = x - self._place[1] if self._place is not None and self._place[0] == y else -1
        if ahead:
            self._text.append(f"\x1b[{ahead}C" if ahead > 0 else f"\x1b[{y + 1};{x + 1}H")
        self._place = y, x

    def lose_place(self) -> None:
        self._place = None

    def write(self, cell: Cell) -> None:
        if cell.look is not self._look:
            self._change_look(*cell.look)
        self._text.append(cell.character)
        if self._place is not None:
            self._place = self._place[0], self._place[1] + 1

    def _change_look(self, colour: str, background: str, attributes: int) -> None:
        before, codes, blank = self._look, list[str](), not colour
        if blank and not before.attributes & _SEEN_ON_BLANK:
            attributes = before.attributes
        if attributes != before.attributes:
            if before.attributes & ~attributes:  # an attribute can only be switched off together with everything else
                codes, before = ["0"], _PLAIN
            codes += [code for bit, code in enumerate(_CODES) if attributes & ~before.attributes & 1 << bit]
        colour = before.colour if blank else colour
        codes += [colour] if colour != before.colour else []
        codes += [background] if background != before.background else []
        if codes:
            self._text.append(f"\x1b[{';'.join(codes)}m")
        self._look = Look(colour, background, attributes)

    def finished(self) -> str:
        if self._look != _PLAIN:
            self._text.append(RESET)
        return "".join(self._text)


def _changed(cells: list[Cell], before: Cells) -> Iterator[tuple[int, int]]:
    """The first and last index of each stretch of cells to send."""
    first = last = -1
    for n, (new, known) in enumerate(zip(cells, before, strict=True)):
        if new is known or new == known:
            continue
        if first < 0:
            first = n
        elif n - last > MAX_RESENT or not all(_follows(cells[last].look, cell.look) for cell in cells[last + 1 : n]):
            yield first, last
            first = n
        last = n
    if first >= 0:
        yield first, last


def _follows(before: Look, look: Look) -> bool:
    """Whether a cell can be sent after another one without a code."""
    return look is before or (not look.colour and look.background == before.background)


@lru_cache(maxsize=8192)
def _piece(text: str, style: Style | None, system: ColorSystem | None) -> _Piece:
    look, blank = _looks(style, system)
    cells = tuple(Cell(character, blank if character == " " else look) for character in text)
    return _Piece(cells, _ONE_CELL_EACH.fullmatch(text) is not None)


@lru_cache(maxsize=4096)
def _looks(style: Style | None, system: ColorSystem | None) -> tuple[Look, Look]:
    """A style's look, and that of a blank in this style."""
    if style is None or system is None:
        return _PLAIN, _PLAIN
    attributes = style._attributes & style._set_attributes
    colour, background = "39", "49"
    if style.color is not None:
        colour = ";".join(style.color.downgrade(system).get_ansi_codes())
    if style.bgcolor is not None:
        background = ";".join(style.bgcolor.downgrade(system).get_ansi_codes(foreground=False))
    look = Look(colour, background, attributes)
    return look, look if attributes & _SEEN_ON_BLANK else Look("", background, 0)
