"""The chain-rule ledger: a row a block, its factor by its parts and by autograd, and their product."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.layer_bars import log_of
from tui_descent.dashboard.panels.panel import Panel, empty, notice
from tui_descent.dashboard.text.line import Line, joined
from tui_descent.dashboard.text.numbers import count, scientific, short
from tui_descent.dashboard.text.safe_text import middle, plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import LedgerEntry

# The product below which the gradient is called gone, as the diagnosis does, and above which it is called blown up.
DIES, EXPLODES = 3e-3, 1 / 3e-3
# Two measurements of one thing: more than float32's rounding over a deep net between them is worth a mark.
AGREES = 1e-3
NUMBER, OFF, FLAG = 9, 8, 11
MAX_DECADES = 6


class ChainPanel(Panel):
    """How much of the gradient every block hands down, and how much is left of it."""

    pace_s = 0.25
    about = (
        "The factor by which each block changes the gradient on its way down, ‖∂L/∂in‖ / ‖∂L/∂out‖: by parts, from the "
        "block's weights, slopes, norm and skip, and beside it autograd's own. Off by: how far the two vectors differ. "
        "The bar is the factor's logarithm, to the left of 1 it shrinks; between the ┊ all blocks together keep "
        f"the product within {DIES:g} … {EXPLODES:.0f}. Product: what is left from the output down. Read once a second."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._top = 0
        self._shown = (0, 0, 0)
        self._decades = 1

    def scroll_by(self, rows: int) -> None:
        """Towards the output, or the input."""
        self._top = max(0, self._top - rows)
        self.forget()

    def heading(self, view: View) -> tuple[str, str]:
        """What a row is above, which rows below."""
        ledger = view.history.ledger
        at = f" at step {count(ledger.step)}" if ledger is not None and ledger.entries else ""
        first, last, many = self._shown
        some = (
            f"blocks {first}-{last} of {many} from the output  [bold $primary]↑ ↓[/]" if last - first + 1 < many else ""
        )
        return f"Chain rule  [dim]‖∂L/∂in‖ / ‖∂L/∂out‖ of every block{at}[/dim]", some

    def cares(self, view: View) -> object:
        """A new ledger."""
        ledger = view.history.ledger
        place = (ledger.segment, ledger.step) if ledger is not None else None
        return view.history, place, view.connected, view.history.state.state

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Head, a row a block with the output at the top, and what it comes to."""
        ledger = view.history.ledger
        if ledger is None or not ledger.entries:
            self._shown = (0, 0, 0)
            return _none_yet(view, width, height)
        downward = ledger.entries[::-1]
        room = max(1, height - 2)
        self._top = min(self._top, max(0, len(downward) - room))
        shown = downward[self._top : self._top + room]
        self._shown = (self._top + 1, self._top + len(shown), len(downward))
        largest = max((abs(log) for e in downward if math.isfinite(log := log_of(e.factor))), default=0.0)
        self._decades = min(max(self._decades, math.ceil(largest)), MAX_DECADES)
        names = min(max(len(plain(e.block)) for e in downward), max(8, width // 5))
        columns = Columns(width, names, self._decades, len(downward))
        flags = dict(found for found in (dies(downward), explodes(downward)) if found is not None)
        lines = [columns.head(), *(columns.row(e, flags.get(e.block, "")) for e in shown)]
        lines += [Line()] * (room - len(shown))
        return [line.strip(width) for line in [*lines, conclusion(downward)]]


def dies(downward: Sequence[LedgerEntry]) -> tuple[str, str] | None:
    """The first block, from the output, that lets next to nothing through."""
    found = next((e for e in downward if e.product is not None and e.product < DIES), None)
    return None if found is None else (found.block, "◀ dies")


def explodes(downward: Sequence[LedgerEntry]) -> tuple[str, str] | None:
    """The first block, from the output, where there is too much of it."""
    found = next((e for e in downward if e.product is not None and e.product > EXPLODES), None)
    return None if found is None else (found.block, "◀ explodes")


def conclusion(downward: Sequence[LedgerEntry]) -> Line:
    """What the factors come to, in words."""
    line = Line().put(" ")
    off = max((e.discrepancy for e in downward if e.discrepancy is not None), default=0.0)
    if off > AGREES:
        line.put(f"parts and autograd differ by up to {scientific(off)}", colours.ORANGE).put(" · ", colours.DIM)
    left = [e.product for e in downward if e.product is not None]
    if (found := dies(downward)) is not None:
        line.put(f"dies at {plain(found[0], 40)}", colours.ORANGE)
        line.put(f": from there down under {DIES:g} of the gradient is left", colours.DIM)
    elif (found := explodes(downward)) is not None:
        line.put(f"explodes at {plain(found[0], 40)}", colours.ORANGE)
        line.put(f": from there down it is over {EXPLODES:.0f} times as large", colours.DIM)
    elif left:
        line.put("flows", colours.GREEN).put(
            f": {short(left[-1])} times the output's gradient reaches the first block", colours.DIM
        )
    else:
        line.put("no gradient came through the blocks", colours.ORANGE)
    return line


class Columns:
    """Where what stands in a row."""

    def __init__(self, width: int, names: int, decades: int, blocks: int) -> None:
        self._names, self._decades = names, decades
        room = width - 1 - names - 3 * NUMBER - FLAG
        self._off = OFF if room - OFF >= 9 else 0
        # Odd, so that a factor of 1 has a column of its own; narrow screens do without the bar.
        room -= self._off + 2
        self._bar = max(0, room - 1 + room % 2)
        self._band = min(math.log10(EXPLODES) / max(1, blocks), decades)

    def head(self) -> Line:
        """The columns' names and the bar's scale."""
        line = Line().put(" ").fit("block", self._names, colours.DIM)
        line.put(f"{'by parts':>{NUMBER}}{'autograd':>{NUMBER}}", colours.DIM)
        line.put(f"{'off by':>{self._off}}" if self._off else "", colours.DIM)
        if self._bar >= 9:
            low, high, half = short(10.0**-self._decades), short(10.0**self._decades), self._bar // 2
            low, high = (text.rstrip("0").rstrip(".") if "." in text else text for text in (low, high))
            line.put(f"  {low:<{half}}1{high:>{half}}", colours.DIM)
        else:
            line.put(" " * (2 + self._bar))
        return line.put(f"{'product':>{NUMBER}}", colours.DIM)

    def row(self, entry: LedgerEntry, flag: str) -> Line:
        """One block."""
        name = middle(plain(entry.block, 200), self._names)
        line = Line().put(" ").fit(name, self._names, colours.BRIGHT if flag else colours.DIM)
        log = log_of(entry.factor)
        style = colours.DIM if math.isnan(log) else colours.GREEN if abs(log) <= self._band else colours.ORANGE
        line.put(f"{scientific(entry.factor):>{NUMBER}}", colours.TEXT)
        line.put(f"{scientific(entry.autograd):>{NUMBER}}", colours.DIM)
        if self._off:
            off = "–" if entry.discrepancy is None else f"{entry.discrepancy:.0e}"
            line.put(f"{off:>{self._off}}", colours.ORANGE if (entry.discrepancy or 0.0) > AGREES else colours.DIM)
        line.put("  ").extend(self._drawn(log, style))
        gone = entry.product is not None and not DIES <= entry.product <= EXPLODES
        line.put(f"{scientific(entry.product):>{NUMBER}}", colours.ORANGE if gone else colours.TEXT)
        return line.put(f" {flag}", colours.ORANGE)

    def _drawn(self, log: float, style: Style) -> list[Segment]:
        """A bar from the middle, in half cells, over the band's edges."""
        half = self._bar // 2
        cells = [Segment(" ", colours.FAINT)] * self._bar
        if not self._bar:
            return []
        edge = round(self._band / self._decades * half)
        for column in (half - edge, half + edge):
            cells[column] = Segment("┊", colours.FAINT)
        cells[half] = Segment("│", colours.DIM)
        if not math.isnan(log):
            halves = round(min(abs(log) / self._decades, 1.0) * 2 * half)
            side = -1 if log < 0 else 1
            for n in range(1, halves // 2 + 1):
                cells[half + side * n] = Segment("█", style)
            if halves % 2:
                cells[half + side * (halves // 2 + 1)] = Segment("▌" if side > 0 else "▐", style)
        return joined(cells)


def _none_yet(view: View, width: int, height: int) -> list[Strip]:
    blockless = "residual" in view.history.unavailable
    if view.history.ledger is None and not blockless:
        return empty(view, width, height, "ledger")
    surface = blockless and view.history.started is not None and view.history.started.scenario is not None
    lines = [
        ("no ledger of this run", colours.TEXT),
        ("it is made from the parts of built-in blocks: Linear, activation, norm, skip", colours.DIM),
        (
            "a surface has no blocks" if surface else "this net has none of them; 1 and 2 show its gradients",
            colours.DIM,
        ),
    ]
    return notice(lines, width, height)
