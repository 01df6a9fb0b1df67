"""The chain-rule panel: each block's gradient factor, computed in two ways, and the product of the factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.backward_pass import (
    EXPLODES_ABOVE,
    FLAG_WIDTH,
    NUMBER_WIDTH,
    VANISHES_BELOW,
    BackwardStep,
    backward_steps,
    draw_backward_pass,
)
from tui_descent.dashboard.panels.layer_bars import log10
from tui_descent.dashboard.panels.panel import Panel, notice, waiting_notice
from tui_descent.dashboard.text.line import Line, merge_segments
from tui_descent.dashboard.text.numbers import scientific, short, with_commas
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import LedgerEntry, LedgerTaken, Noted
from tui_descent.protocol.layer_names import in_words
from tui_descent.telemetry.history import History

# Rounding in float32 cannot explain a larger relative difference between the two computations.
MAX_DISCREPANCY = 1e-3
ERROR_WIDTH = 8
MAX_DECADES = 6


class ChainRulePanel(Panel):
    """By what factor each block changes the gradient, and the product of these factors."""

    min_interval_s = 0.25
    help_text = (
        "The factor by which each block changes the gradient's norm in the backward pass, ‖∂L/∂in‖ / ‖∂L/∂out‖. By "
        "parts: computed from the block's weights, activation slopes, normalisation and skip connection. Autograd: the "
        "same factor, computed by autograd. Error: relative difference between the two gradient vectors at the block's "
        "input. The bar shows the factor on a logarithmic scale; it points left if the gradient shrinks. The two ┊ "
        "mark the healthy range of one factor. If every bar ends between them, the product of all factors stays within "
        f"{VANISHES_BELOW:g} … {EXPLODES_ABOVE:.0f}. Product: all factors from the output down to this block, "
        "multiplied. Measured once a second. enter steps through the backward pass of the newest reading, from the "
        "output down: each block's factor with its formula and the factors of its parts, and the product so far as a "
        "bar on a logarithmic scale. For this, the trainer runs the last batch once more. Attention "
        "and convolutions have no formula here: their factors are those of autograd, measured when enter is pressed."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._top = 0
        self._shown = (0, 0, 0)
        self._decades = 1
        # While somebody steps through the backward pass: the reading at its start, its blocks, and the one at hand.
        self._frozen: LedgerTaken | None = None
        self._steps: list[BackwardStep] = []
        self._at = 0
        self._measured: LedgerTaken | None = None  # the newest backward pass before these steps
        self._awaits = False  # whether the steps go on with the next one

    @property
    def stepping(self) -> bool:
        """Whether the panel shows a backward pass step by step."""
        return self._frozen is not None

    def step(self, view: View) -> bool:
        """Start with the block at the output, or go on to the next block; after the last one, leave.

        Returns False if there is no reading to step through.
        """
        if self._frozen is None:
            ledger, self._measured = _newest(view.history), view.history.backward_pass
            if ledger is None:
                return False
            self._awaits = True
            self._frozen, self._steps, self._at = ledger, backward_steps(ledger, view.history), 0
            self.invalidate()
        elif self._at == len(self._steps) - 1:
            self.leave_steps()
        else:
            self.scroll_by(-1)
        return True

    def show(self, view: View) -> bool:
        """Go on with the backward pass that was measured for these steps, as soon as it has arrived."""
        measured = view.history.backward_pass
        if self._awaits and measured is not None and measured is not self._measured:
            self._frozen, self._awaits = measured, False
            self._steps = backward_steps(measured, view.history)
            self._at = min(self._at, len(self._steps) - 1)
        return super().show(view)

    def await_steps(self, view: View) -> None:
        """Start with the next backward pass that is measured."""
        self._awaits, self._measured = True, view.history.backward_pass

    def leave_steps(self) -> None:
        """Show the newest reading again."""
        self._frozen, self._steps, self._awaits = None, [], False
        self.invalidate()

    def scroll_by(self, rows: int) -> None:
        """Scroll towards the output (positive) or the input; while stepping, go to another block."""
        if self.stepping:
            self._at = min(max(0, self._at - rows), len(self._steps) - 1)
        else:
            self._top = max(0, self._top - rows)
        self.invalidate()

    def heading(self, view: View) -> tuple[str, str]:
        if self._frozen is not None:
            count = len(self._steps)
            title = f"Chain rule  [dim]the backward pass at step {with_commas(self._frozen.step)}, frozen · "
            title += f"block {self._at + 1} of {count}[/dim]"
            next_ = "next block" if self._at < count - 1 else "ends"
            return title, f"{_key('enter')} {next_} · [bold $primary]↑ ↓[/] move · {_key('escape')} leaves"
        ledger = _newest(view.history)
        at = f" at step {with_commas(ledger.step)}" if ledger is not None else ""
        first, last, count = self._shown
        position = f"blocks {first}-{last} of {count}, counted from the output  [bold $primary]↑ ↓[/] · "
        title = f"Chain rule  [dim]‖∂L/∂in‖ / ‖∂L/∂out‖ of each block{at}[/dim]"
        if not count and not _measures_on_request(view):
            return title, ""
        return title, f"{position if last - first + 1 < count else ''}{_key('enter')} step by step"

    def depends_on(self, view: View) -> object:
        """The newest chain-rule reading."""
        ledger = _newest(view.history)
        place = (ledger.segment, ledger.step) if ledger is not None else None
        if self._frozen is not None:
            return self._frozen, self._at
        history = view.history
        return history, place, history.ledger is None, view.connected, history.state.state, can_measure(view)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        if self._frozen is not None:
            downward = self._frozen.entries[::-1]
            return draw_backward_pass(self._steps, self._at, _flags(downward), conclusion(downward), width, height)
        ledger = _newest(view.history)
        if ledger is None:
            self._shown = (0, 0, 0)
            return _nothing_to_show(view, width, height)
        downward = ledger.entries[::-1]
        room = max(1, height - 2)
        self._top = min(self._top, max(0, len(downward) - room))
        shown = downward[self._top : self._top + room]
        self._shown = (self._top + 1, self._top + len(shown), len(downward))
        largest = max((abs(log) for e in downward if math.isfinite(log := log10(e.factor))), default=0.0)
        self._decades = min(max(self._decades, math.ceil(largest)), MAX_DECADES)
        names = min(max(len(safe(e.block)) for e in downward), max(8, width // 5))
        layout = RowLayout(width, names, self._decades, len(downward))
        flags = _flags(downward)
        lines = [layout.head(), *(layout.row(e, flags.get(e.block, "")) for e in shown)]
        lines += [Line()] * (room - len(shown))
        return [line.to_strip(width) for line in [*lines, conclusion(downward)]]


def _newest(history: History) -> LedgerTaken | None:
    """The newest reading with blocks. Where the usual readings have none, as with attention, it is the one that was
    measured to step through it.
    """
    ledger = history.ledger
    return ledger if ledger is not None and ledger.entries else history.backward_pass


def can_measure(view: View) -> bool:
    """Whether the trainer can measure a backward pass: in a scenario run of a net with blocks."""
    history = view.history
    is_scenario = history.started is not None and history.started.scenario is not None
    return history.live and not view.replay and view.connected and is_scenario and "residual" not in history.unavailable


def _measures_on_request(view: View) -> bool:
    """Whether the trainer can measure a backward pass, but the usual readings have no blocks, as with attention."""
    return can_measure(view) and view.history.ledger is not None and not view.history.ledger.entries


def _key(name: str) -> str:
    """A key in a border, which can be clicked."""
    return f"[@click=app.press('{name}')][bold $primary]{name}[/][/]"


def _flags(downward: Sequence[LedgerEntry]) -> dict[str, str]:
    return dict(found for found in (vanishing_at(downward), exploding_at(downward)) if found is not None)


def vanishing_at(downward: Sequence[LedgerEntry]) -> tuple[str, str] | None:
    """The block closest to the output at which the gradient has vanished, with its flag; None if there is none."""
    found = next((e for e in downward if e.product is not None and e.product < VANISHES_BELOW), None)
    return None if found is None else (found.block, "◀ vanishes")


def exploding_at(downward: Sequence[LedgerEntry]) -> tuple[str, str] | None:
    """The block closest to the output at which the gradient has exploded, with its flag; None if there is none."""
    found = next((e for e in downward if e.product is not None and e.product > EXPLODES_ABOVE), None)
    return None if found is None else (found.block, "◀ explodes")


def conclusion(downward: Sequence[LedgerEntry]) -> Line:
    """The last row: whether the gradient vanishes, explodes or flows, in words."""
    line = Line().add(" ")
    off = max((e.discrepancy for e in downward if e.discrepancy is not None), default=0.0)
    if off > MAX_DISCREPANCY:
        line.add(f"the two computations differ by up to {scientific(off)}", colours.ORANGE).add(" · ", colours.DIM)
    left = [e.product for e in downward if e.product is not None]
    if (found := vanishing_at(downward)) is not None:
        line.add(f"vanishes at {in_words(safe(found[0], 40))}", colours.ORANGE)
        line.add(f": below it, less than {VANISHES_BELOW:g} of the gradient is left", colours.DIM)
    elif (found := exploding_at(downward)) is not None:
        line.add(f"explodes at {in_words(safe(found[0], 40))}", colours.ORANGE)
        line.add(f": below it, the gradient is more than {EXPLODES_ABOVE:.0f} times as large", colours.DIM)
    elif left:
        line.add("flows", colours.GREEN).add(
            f": the gradient at the first block is {short(left[-1])} times that at the output", colours.DIM
        )
    else:
        line.add("no gradient passed through the blocks", colours.ORANGE)
    return line


class RowLayout:
    """The columns of the table, for a given width."""

    def __init__(self, width: int, names: int, decades: int, blocks: int) -> None:
        self._names, self._decades = names, decades
        room = width - 1 - names - 3 * NUMBER_WIDTH - FLAG_WIDTH
        self._error = ERROR_WIDTH if room - ERROR_WIDTH >= 9 else 0
        # The width is odd, so a factor of 1 has its own column. Narrow screens have no bar.
        room -= self._error + 2
        self._bar = max(0, room - 1 + room % 2)
        self._band = min(math.log10(EXPLODES_ABOVE) / max(1, blocks), decades)

    def head(self) -> Line:
        """The table's header, with the bar's scale."""
        line = Line().add(" ").fit("block", self._names, colours.DIM)
        line.add(f"{'by parts':>{NUMBER_WIDTH}}{'autograd':>{NUMBER_WIDTH}}", colours.DIM)
        line.add(f"{'error':>{self._error}}" if self._error else "", colours.DIM)
        if self._bar >= 9:
            low, high, half = short(10.0**-self._decades), short(10.0**self._decades), self._bar // 2
            low, high = (text.rstrip("0").rstrip(".") if "." in text else text for text in (low, high))
            line.add(f"  {low:<{half}}1{high:>{half}}", colours.DIM)
        else:
            line.add(" " * (2 + self._bar))
        return line.add(f"{'product':>{NUMBER_WIDTH}}", colours.DIM)

    def row(self, entry: LedgerEntry, flag: str) -> Line:
        """One block's row."""
        name = shorten(safe(entry.block, 200), self._names)
        line = Line().add(" ").fit(name, self._names, colours.BRIGHT if flag else colours.DIM)
        log = log10(entry.factor)
        style = colours.DIM if math.isnan(log) else colours.GREEN if abs(log) <= self._band else colours.ORANGE
        line.add(f"{scientific(entry.factor):>{NUMBER_WIDTH}}", colours.TEXT)
        line.add(f"{scientific(entry.autograd):>{NUMBER_WIDTH}}", colours.DIM)
        if self._error:
            error = "–" if entry.discrepancy is None else f"{entry.discrepancy:.0e}"
            line.add(
                f"{error:>{self._error}}",
                colours.ORANGE if (entry.discrepancy or 0.0) > MAX_DISCREPANCY else colours.DIM,
            )
        line.add("  ").extend(self._draw_bar(log, style))
        unhealthy = entry.product is not None and not VANISHES_BELOW <= entry.product <= EXPLODES_ABOVE
        line.add(f"{scientific(entry.product):>{NUMBER_WIDTH}}", colours.ORANGE if unhealthy else colours.TEXT)
        return line.add(f" {flag}", colours.ORANGE)

    def _draw_bar(self, log: float, style: Style) -> list[Segment]:
        """The bar, in half cells outwards from the middle. It is drawn over the marks of the healthy range."""
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
        return merge_segments(cells)


def _nothing_to_show(view: View, width: int, height: int) -> list[Strip]:
    blockless = "residual" in view.history.unavailable
    if view.history.ledger is None and (reason := _not_measured(view)):
        words = [("the chain rule cannot be measured in this run", colours.TEXT), (reason, colours.DIM)]
        return notice([*words, ("views 1 and 2 show the gradients of all layers", colours.DIM)], width, height)
    if _measures_on_request(view):
        return notice([("press enter to measure a backward pass, block by block", colours.TEXT)], width, height)
    if view.history.ledger is None and not blockless:
        return waiting_notice(view, width, height, "chain-rule reading")
    surface = blockless and view.history.started is not None and view.history.started.scenario is not None
    started = view.history.started
    if not blockless and started is not None and started.scenario is not None:
        return notice([("enter was not pressed here during the run", colours.DIM)], width, height)
    lines = [
        ("not available for this run", colours.TEXT),
        ("this view needs built-in blocks: Linear, activation, norm layer, skip", colours.DIM),
        (
            "a test surface has no blocks"
            if surface
            else "this net has no such blocks; views 1 and 2 show its gradients",
            colours.DIM,
        ),
    ]
    return notice(lines, width, height)


def _not_measured(view: View) -> str:
    """Why there will be no chain-rule reading, from the run's notes; empty if there may be one."""
    notes = (fact.text for fact in view.history.log if isinstance(fact, Noted))
    note = next(
        (text for text in notes if text.startswith(("not measured: ", "switched off: ")) and "the chain-rule" in text),
        "",
    )
    return safe(note.rpartition(", because ")[2])
