"""A bounded time series at several resolutions: level k holds the newest bins of 2^k steps. Adding a step costs O(1).

Bins start at multiples of their width, so a chart's older columns do not move while the newest one grows.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from tui_descent.protocol.events import LevelSent

Merge = Literal["min", "max", "mean"]
LOSS_BINS = 1024
DEVICE_BINS = 256


def _mean(a: float, b: float, wa: float, wb: float) -> float:
    # In this form neither two infinities nor an overflowing product gives NaN.
    return a if a == b else a + (b - a) * (wb / (wa + wb))


_MERGES: dict[Merge, Callable[[float, float, float, float], float]] = {
    "min": lambda a, b, wa, wb: a if a <= b else b,
    "max": lambda a, b, wa, wb: a if a >= b else b,
    "mean": _mean,
}


class Level:
    """Bins of one width.

    `bins[n]` is the first step of bin n divided by the width; `values` has its channels in a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.bins = array("q")
        self.counts = array("d")
        self.values = array("d")


class Pyramid:
    """`merges` says how each channel's values are combined when two bins become one. NaN means no value."""

    def __init__(self, merges: Sequence[Merge], *, capacity: int) -> None:
        assert capacity >= 2
        self.merges = tuple(merges)
        self.capacity = capacity
        self.levels = [Level(1)]
        self._join = [_MERGES[m] for m in self.merges]

    @property
    def channels(self) -> int:
        """How many values a bin holds."""
        return len(self.merges)

    def add(self, step: int, values: Sequence[float]) -> None:
        """Add one step's values. Steps must come in order; a repeated step is merged into its bin."""
        assert len(values) == self.channels
        self._push(0, step, array("d", values), 1.0)

    def _push(self, k: int, bin_: int, values: array[float], count: float) -> None:
        level = self.levels[k]
        if level.bins and level.bins[-1] == bin_:
            c = self.channels
            tail = level.values[-c:]
            level.values[-c:] = self._merged(tail, values, level.counts[-1], count)
            level.counts[-1] += count
            return
        # A new bin closes the previous one, and a closed bin is merged into the level above.
        if level.bins:
            if k + 1 == len(self.levels):
                # The level above is created only when this level is about to drop bins.
                if len(level.bins) >= self.capacity:
                    self._grow(k)
            else:
                self._push(k + 1, level.bins[-1] >> 1, level.values[-self.channels :], level.counts[-1])
        level.bins.append(bin_)
        level.counts.append(count)
        level.values.extend(values)
        self._trim(k)

    def _trim(self, k: int) -> None:
        """Drop old bins that the level above covers."""
        level = self.levels[k]
        # Bins are dropped only when there are a quarter too many. That bounds both the copying and the extra memory.
        if len(level.bins) >= self.capacity + max(1, self.capacity // 4) and k + 1 < len(self.levels):
            cut = len(level.bins) - self.capacity
            del level.bins[:cut], level.counts[:cut], level.values[: cut * self.channels]

    def _grow(self, k: int, *, open_: int = 0) -> None:
        """Add a level above level k, built from its bins except the newest `open_` bins, which are not complete."""
        level, c = self.levels[k], self.channels
        self.levels.append(Level(level.width * 2))
        for n, bin_ in enumerate(level.bins[: len(level.bins) - open_]):
            self._push(k + 1, bin_ >> 1, level.values[n * c : (n + 1) * c], level.counts[n])

    def _merged(self, a: array[float], b: array[float], wa: float, wb: float) -> array[float]:
        return array(
            "d",
            [
                y if math.isnan(x) else x if math.isnan(y) else join(x, y, wa, wb)
                for join, x, y in zip(self._join, a, b, strict=True)
            ],
        )

    def before(self, step: int) -> Pyramid:
        """A pyramid of the steps before this one. Each step has the finest resolution that is still known for it."""
        cut = Pyramid(self.merges, capacity=self.capacity)
        cut.levels = []
        c, end = self.channels, step
        for level in self.levels:
            made = Level(level.width)
            for n, bin_ in enumerate(level.bins):
                if (bin_ + 1) * level.width > end:
                    break
                made.bins.append(bin_)
                made.counts.append(level.counts[n])
                made.values.extend(level.values[n * c : (n + 1) * c])
            if cut.levels:
                self._merge_up(cut.levels[-1], made)
            cut.levels.append(made)
            if made.bins:
                end = made.bins[-1] * made.width  # the newest bin is not in the level above yet
        while len(cut.levels) > 1 and not cut.levels[-1].bins:
            cut.levels.pop()
        return cut

    def _merge_up(self, below: Level, level: Level) -> None:
        """Add the complete bins of the level below that this shortened level lacks."""
        c, known = self.channels, (level.bins[-1] + 1) * level.width if level.bins else -1
        for n, bin_ in enumerate(below.bins[:-1]):
            if bin_ * below.width < known:
                continue
            values, count = below.values[n * c : (n + 1) * c], below.counts[n]
            if level.bins and level.bins[-1] == bin_ >> 1:
                level.values[-c:] = self._merged(level.values[-c:], values, level.counts[-1], count)
                level.counts[-1] += count
            else:
                level.bins.append(bin_ >> 1)
                level.counts.append(count)
                level.values.extend(values)

    def remapped(self, sources: Sequence[int | None], merges: Sequence[Merge], *, capacity: int) -> Pyramid:
        """A pyramid of the same steps with other channels.

        `sources` gives, for each new channel, the number of the channel here that it is copied from, or None to fill it
        with NaN. With a smaller `capacity`, old steps are kept at a coarser resolution.
        """
        made = Pyramid(merges, capacity=capacity)
        assert len(sources) == made.channels
        made.levels = []
        for level in self.levels:
            other = Level(level.width)
            other.bins, other.counts = level.bins[:], level.counts[:]
            other.values = array("d", [math.nan]) * (len(level.bins) * made.channels)
            for channel, source in enumerate(sources):
                if source is not None:
                    other.values[channel :: made.channels] = level.values[source :: self.channels]
            made.levels.append(other)
        k = 0
        while k < len(made.levels):  # the number of levels may grow
            if k + 1 == len(made.levels) and len(made.levels[k].bins) > capacity:
                made._grow(k, open_=1)
            made._trim(k)
            k += 1
        return made

    def newest(self) -> list[float]:
        """The values of the last step, or of the finest bin that contains it; NaN if the pyramid is empty."""
        finest = next((level for level in self.levels if level.bins), self.levels[0])
        return list(finest.values[-self.channels :]) or [math.nan] * self.channels

    def __bool__(self) -> bool:
        return any(level.bins for level in self.levels)

    def first_step(self) -> int:
        """The earliest step that is still known at any resolution; 0 if the pyramid is empty."""
        top = self.levels[-1]
        return top.bins[0] * top.width if top.bins else 0

    def window(self, width: int, first: int, last: int) -> list[tuple[int, list[float]]]:
        """Bins of `width` steps (a power of two) that overlap steps first..last, as `(bin number, values)` in order.

        The values come from the coarsest level that is fine enough and reaches back to `first`. If there is no such
        level, they come from a coarser level, whose bins are numbered by the first requested bin that each covers.
        """
        assert width & (width - 1) == 0
        level = self._level_for(width, first)
        joined: list[tuple[int, list[float]]] = []
        weight = 0.0
        for bin_, count, values in self._bins(level):
            start = bin_ * level.width
            if start + level.width <= first:
                continue
            if start > last:
                break
            wide = start // width
            if joined and joined[-1][0] == wide:
                merged = self._merged(array("d", joined[-1][1]), values, weight, count)
                joined[-1] = (wide, list(merged))
                weight += count
            else:
                joined.append((wide, list(values)))
                weight = count
        return joined

    def _level_for(self, width: int, first: int) -> Level:
        fitting = [level for level in self.levels if level.width <= width] or self.levels[:1]
        for level in reversed(fitting):
            if level.bins and (level.bins[0] * level.width <= first or level is self.levels[-1]):
                return level
        return next((lv for lv in self.levels if lv.bins and lv.bins[0] * lv.width <= first), self.levels[-1])

    def _bins(self, level: Level) -> Iterator[tuple[int, float, array[float]]]:
        """A level's own bins, then the newest bins of the levels below, which are not merged into it yet."""
        c = self.channels
        for n, bin_ in enumerate(level.bins):
            yield bin_, level.counts[n], level.values[n * c : (n + 1) * c]
        for k in range(self.levels.index(level) - 1, -1, -1):
            below = self.levels[k]
            if below.bins:
                # Each level's newest bin is not in the level above yet.
                ratio = level.width // below.width
                yield below.bins[-1] // ratio, below.counts[-1], below.values[-c:]

    def send(self) -> list[LevelSent]:
        """The whole pyramid as bytes."""
        return [
            LevelSent(width=lv.width, bins=lv.bins.tobytes(), counts=lv.counts.tobytes(), values=lv.values.tobytes())
            for lv in self.levels
        ]

    def receive(self, levels: Sequence[LevelSent]) -> None:
        """Replace the contents by a pyramid from `send`."""
        self.levels = []
        for sent in levels:
            level = Level(sent.width)
            level.bins.frombytes(sent.bins)
            level.counts.frombytes(sent.counts)
            level.values.frombytes(sent.values)
            self.levels.append(level)

    def nbytes(self) -> int:
        """Memory of the bins in bytes."""
        return sum(len(lv.bins) * 8 + len(lv.counts) * 8 + len(lv.values) * 8 for lv in self.levels)


def loss_pyramid() -> Pyramid:
    """A pyramid with the channels smallest, largest and mean loss, and mean smoothed loss."""
    return Pyramid(("min", "max", "mean", "mean"), capacity=LOSS_BINS)


def device_pyramid() -> Pyramid:
    """A pyramid with the channels largest memory in use, in bytes, and mean utilisation of the GPU, 0…1."""
    return Pyramid(("max", "mean"), capacity=DEVICE_BINS)
