"""A vertical axis: the position of a value between 0 and 1, and the numbers written beside the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.line import Line, merge_segments
from tui_descent.dashboard.text.numbers import axis_number

# Larger values are drawn at the end of the axis, because their differences could overflow.
HUGE = 1e300
NICE = (1.0, 2.0, 5.0)
# If fewer than FEW multiples of NICE lie on an axis, multiples of FINER are used instead.
FEW, FINER = 4, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
MOST_DIGITS = 7
# From this many decades on, only powers of ten are written.
MANY_DECADES = 3
# The ends of an axis are rounded to multiples of these numbers, so few rows stay empty.
LIMITS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """`low` and `high` are in the axis' own units: log10 of the value when `log`."""

    low: float
    high: float
    log: bool

    @classmethod
    def linear(cls, low: float, high: float) -> Axis:
        """A linear axis. Its limits are rounded outward, so they rarely change."""
        low, high = (min(max(v, -HUGE), HUGE) for v in (low, high))
        if not high - low > 1e-9 * max(abs(low), abs(high)):
            pad = abs(high) * 0.1 or 1.0
            low, high = low - pad, high + pad
        unit = nice_below(high - low) / 4
        bottom, top = math.floor(low / unit) * unit, math.ceil(high / unit) * unit
        return cls(bottom, top, False)

    def position(self, value: float) -> float:
        """0 at the bottom to 1 at the top, clamped; NaN for values that cannot be shown.

        A log axis shows 0 at the bottom.
        """
        if self.log:
            if value == 0:
                return 0.0
            if not value > 0:
                return math.nan
            value = math.log10(value) if value < math.inf else math.inf
        if math.isnan(value):
            return math.nan
        return min(max((min(max(value, -HUGE), HUGE) - self.low) / (self.high - self.low), 0.0), 1.0)

    def contains(self, value: float) -> bool:
        """Whether a value lies between the limits. If so, `position` does not clamp it."""
        if self.log:
            value = math.log10(value) if 0 < value < math.inf else math.inf
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack

    def row(self, value: float, rows: int) -> int:
        """The text row of the value's braille dot, counted from the top. The value's position must not be NaN."""
        return rows - 1 - round(self.position(value) * (4 * rows - 1)) // 4

    def labels(self, rows: int, *, width: int = MOST_DIGITS + 8) -> dict[int, str]:
        """The numbers to write, by row from the top.

        No text occurs twice; texts have at most `width` cells if possible.
        """
        found: dict[int, float] = {}
        if rows < 1:
            return {}
        # With few rows, adjacent rows may both have a number.
        gap = 1 if rows > 8 else 0
        for value in sorted(self._ticks(rows, gap), key=self._weight):
            row = self.row(value, rows)
            if not any(near in found for near in range(row - gap, row + gap + 1)):
                found[row] = value
        texts = [axis_number(value) for value in found.values()]
        near, digits = math.inf if self.log else (self.high - self.low) / (4 * rows), 2
        # Add digits until each number differs from its value by less than a row.
        while digits <= MOST_DIGITS and any(
            abs(float(t) - v) > near for t, v in zip(texts, found.values(), strict=True)
        ):
            finer, digits = [axis_number(value, digits=digits) for value in found.values()], digits + 1
            if max(map(len, finer)) > width:
                break
            texts = finer
        best: dict[str, tuple[float, int]] = {}
        for (row, value), text in zip(found.items(), texts, strict=True):
            best[text] = min((abs(float(text) - value), row), best.get(text, (math.inf, row)))
        return {row: text for text, (_, row) in best.items()}

    def _weight(self, value: float) -> int:
        """The order in which numbers get a row: powers of ten, then fives, then twos, then the rest."""
        if not self.log:
            return 0
        mantissa = value / 10.0 ** math.floor(math.log10(value) + 1e-9)
        return next((n for n, first in enumerate((1, 5, 2)) if abs(mantissa - first) < 1e-6), 3)

    def _ticks(self, rows: int, gap: int) -> list[float]:
        if not self.log:
            unit = nice_below((self.high - self.low) * 2 / max(2, rows / 2))
            first, last = math.ceil(self.low / unit - 1e-9), math.floor(self.high / unit + 1e-9)
            if first == last:  # a single number does not show the scale
                unit = nice_below(unit * 0.9)
                first, last = math.ceil(self.low / unit - 1e-9), math.floor(self.high / unit + 1e-9)
            return [n * unit for n in range(first, last + 1)]
        if self.high - self.low >= MANY_DECADES:
            # Whole decades at equal distances.
            return self._multiples((1.0,), every=max(1, math.ceil((gap + 1) * (self.high - self.low) / rows)))
        found = self._multiples(NICE)
        return found if len(found) >= FEW or rows < 2 * FEW else self._multiples(FINER)

    def _multiples(self, nice: tuple[float, ...], *, every: int = 1) -> list[float]:
        """The multiples of powers of ten by `nice` that lie on the log axis; only every `every`-th power is used."""
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [m * 10.0**e for e in exponents for m in nice if e > -300 and e % every == 0]
        return [v for v in found if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]


def numbered_rows(cells: list[list[Segment]], numbers: Mapping[int, str], left: int, width: int) -> list[Strip]:
    """A chart's rows. The axis numbers, given by row, are right-aligned in the `left` cells before the chart."""
    return [
        Line().add(f"{numbers.get(y, ''):>{left - 1}} ", colours.DIM).extend(merge_segments(row)).to_strip(width)
        for y, row in enumerate(cells)
    ]


def axis_over(values: Sequence[float], *, log: bool) -> Axis:
    """An axis over finite values. It is logarithmic if `log` is set, no value is negative and one is positive."""
    positive = [v for v in values if v > 0]
    if log and positive and min(values) >= 0:
        return log_axis(min(positive), max(positive))
    return Axis.linear(min(values, default=0.0), max(values, default=1.0))


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis around positive values, with limits rounded outward; it spans at least a factor of four."""
    low, high = (min(max(v, 1 / HUGE), HUGE) for v in (low, high))
    bottom, top = nice_below(low, LIMITS), nice_above(high, LIMITS)
    if top < bottom * 4:
        bottom, top = nice_below(low / 1.6, LIMITS), nice_above(high * 1.6, LIMITS)
    return Axis(math.log10(bottom), math.log10(max(top, bottom * 1.5)), True)


def nice_below(value: float, nice: tuple[float, ...] = NICE) -> float:
    """The largest of `nice` × 10^k that is not above `value`."""
    if not (math.isfinite(value) and value > 1e-300):
        return 1e-300
    power = 10.0 ** math.floor(math.log10(value))
    return max((m * power for m in nice if m * power <= value * (1 + 1e-12)), default=power / 2)


def nice_above(value: float, nice: tuple[float, ...] = NICE) -> float:
    """The smallest of `nice` × 10^k that is not below `value`."""
    value = min(max(value, 1e-300), 1e300)
    power = 10.0 ** math.floor(math.log10(value))
    return min((m * power for m in (*nice, 10.0) if m * power >= value * (1 - 1e-12)), default=power * 10)
