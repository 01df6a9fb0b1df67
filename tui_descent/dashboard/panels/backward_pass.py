"""The backward pass, one block after the other: the factors of a chain-rule reading and their product so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.block_parts import BlockParts, parts_of
from tui_descent.dashboard.panels.layer_bars import log10
from tui_descent.dashboard.text.line import Line, merge_segments
from tui_descent.dashboard.text.numbers import power_of_ten, scientific, short
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.protocol.events import BlockPart, LedgerTaken
from tui_descent.telemetry.history import History

# Below the first product the gradient counts as vanished, above the second as exploded.
VANISHES_BELOW, EXPLODES_ABOVE = 3e-3, 1 / 3e-3
NUMBER_WIDTH, FLAG_WIDTH = 9, 11
SMALLEST_BAR = 9
WIDE = 100  # columns from which the product after each part is shown


class BackwardStep(NamedTuple):
    """One block: the product of the factors above it, its factor (None if it is not known), and the product with it.

    A factor that is not known counts as 1. `factors` are those of the block's parts, if they were measured.
    """

    block: str
    before: float
    factor: float | None
    product: float
    parts: BlockParts
    factors: Mapping[BlockPart, float | None]


def backward_steps(ledger: LedgerTaken, history: History) -> list[BackwardStep]:
    """The blocks of a chain-rule reading from the output down, multiplied up."""
    steps: list[BackwardStep] = []
    product = 1.0
    for entry in reversed(ledger.entries):
        before, product = product, product * (1.0 if entry.factor is None else entry.factor)
        parts = parts_of(history, entry.block, ledger.step, len(ledger.entries))
        factors = {one.part: one.factor for one in entry.parts}
        steps.append(BackwardStep(entry.block, before, entry.factor, product, parts, factors))
    return steps


def draw_backward_pass(
    steps: Sequence[BackwardStep], at: int, flags: Mapping[str, str], end: Line, width: int, height: int
) -> list[Strip]:
    """A row per block with the product so far, down to block `at`, and below the rows how this block acts.

    `flags` are words behind the rows of some blocks. `end` is shown at the last block.
    """
    now = steps[at]
    parts = _explanations(now, width)
    most = max(len(step.parts.explanations([*step.factors])) for step in steps)
    details = [Line(), _formula(now), *parts]
    details += [Line()] * (most - len(parts))
    last = [_multiplication(now), end if at == len(steps) - 1 else Line()]
    # Where there is little room, the explanations give way first, and the block at hand last.
    details = [*details[: max(0, height - 5)], *last][: max(0, height - 2)]
    room = max(1, height - 1 - len(details))
    top = min(max(0, at - room // 2), max(0, len(steps) - room))
    table = _ProductTable(steps, width)
    lines = [table.head()] if height > 1 else []
    for n in range(top, min(top + room, len(steps))):
        lines.append(table.row(steps[n], flags.get(steps[n].block, ""), here=n == at, reached=n <= at))
    return [line.to_strip(width) for line in [*lines, *details]]


def _formula(step: BackwardStep) -> Line:
    return (
        Line()
        .add(" ")
        .add(shorten(safe(step.block, 200), 24), colours.NAME)
        .add(f"  {step.parts.formula([*step.factors])}")
    )


def _explanations(step: BackwardStep, width: int) -> list[Line]:
    """A row for each part: its symbol, its factor, on wide screens the product after it, and what it does."""
    lines, product = [], step.before
    for part, symbol, meaning in step.parts.explanations([*step.factors]):
        line = Line().add("  ").fit(symbol, 5, colours.BRIGHT)
        if step.factors:
            factor = step.factors.get(part)
            product *= 1.0 if factor is None else factor
            line.fit("" if factor is None else f"× {short(factor, digits=3)}", 10)
            if width >= WIDE:
                line.fit("" if factor is None else f"= {scientific(product)}", 12, _product_style(product))
        lines.append(line.add(meaning, colours.DIM))
    return lines


def _multiplication(step: BackwardStep) -> Line:
    line = Line().add(" product ", colours.DIM)
    if step.factor is None:
        return line.add(f"{step.product:.3g}").add(
            ": the factor of this block is not known, it counts as 1", colours.DIM
        )
    line.add(f"{step.before:.3g} × {step.factor:.3g} = ").add(f"{step.product:.3g}", _product_style(step.product))
    if not math.isfinite(step.factor):
        return line
    word = "shrinks" if step.factor < 1 else "grows" if step.factor > 1 else "stays as it is"
    return line.add(f"  here the gradient {word}", colours.DIM)


def _product_style(product: float) -> Style:
    return colours.GREEN if VANISHES_BELOW <= product <= EXPLODES_ABOVE else colours.ORANGE


class _ProductTable:
    """The rows, with the products as bars from 1 to the product on a logarithmic scale that fits all of them."""

    def __init__(self, steps: Sequence[BackwardStep], width: int) -> None:
        self._names = min(max(len(safe(step.block)) for step in steps), max(8, width // 5))
        room = width - 1 - self._names - 2 * NUMBER_WIDTH - FLAG_WIDTH - 2
        self._bar = room if room >= SMALLEST_BAR else 0
        logs = [log for step in steps if math.isfinite(log := log10(step.product))]
        self._low = min(-1, math.floor(min(logs, default=0.0)))
        self._high = max(1, math.ceil(max(logs, default=0.0)))

    def head(self) -> Line:
        """The header, with the bars' scale."""
        line = Line().add(" ").fit("block", self._names, colours.DIM).add(f"{'factor':>{NUMBER_WIDTH}}  ", colours.DIM)
        low, one, high = power_of_ten(self._low), self._column(0.0), power_of_ten(self._high)
        scale = [" "] * self._bar
        if self._bar:
            scale[one] = "1"
            if len(low) < one:
                scale[: len(low)] = low
            if self._bar - len(high) > one + 1:
                scale[self._bar - len(high) :] = high
        return line.add("".join(scale), colours.DIM).add(f"{'product':>{NUMBER_WIDTH}}", colours.DIM)

    def row(self, step: BackwardStep, flag: str, *, here: bool, reached: bool) -> Line:
        """One block. Blocks that are not `reached` are dim and have no product yet."""
        text = colours.FAINT if not reached else colours.BRIGHT if here else colours.TEXT
        line = Line().add("▸" if here else " ", colours.NAME)
        line.fit(shorten(safe(step.block, 200), self._names), self._names, colours.NAME if here else text)
        line.add(f"{short(step.factor, digits=3):>{NUMBER_WIDTH}}  ", text)
        if not reached:
            return line
        line.extend(self._draw_bar(step.product))
        style = text if VANISHES_BELOW <= step.product <= EXPLODES_ABOVE else colours.ORANGE
        return line.add(f"{scientific(step.product):>{NUMBER_WIDTH}}", style).add(f" {flag}", colours.ORANGE)

    def _column(self, log: float) -> int:
        share = (log - self._low) / (self._high - self._low)
        return round(min(max(share, 0.0), 1.0) * (self._bar - 1))

    def _draw_bar(self, product: float) -> list[Segment]:
        """The bar, drawn over the limits of the healthy range."""
        if not self._bar:
            return []
        cells = [Segment(" ", colours.FAINT)] * self._bar
        for limit in (log10(VANISHES_BELOW), log10(EXPLODES_ABOVE)):
            if self._low < limit < self._high:
                cells[self._column(limit)] = Segment("┊", colours.FAINT)
        one, log = self._column(0.0), log10(product)
        if not math.isnan(log):
            end = self._column(log)
            for n in range(min(one, end), max(one, end) + 1):
                cells[n] = Segment("█", _product_style(product))
        cells[one] = Segment("│", colours.DIM)
        return merge_segments(cells)
