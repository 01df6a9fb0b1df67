"""What is known of a run's layers while they come and go: their gradients over time, and a reading of other ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from tui_descent.protocol.events import Layer, LevelSent, ReadingsTaken
from tui_descent.telemetry.pyramid import Merge, Pyramid

GRAD_BINS = 512
# Of so many layers each column is kept; of more there are fewer columns, to bound the memory.
LAYERS_IN_FULL = 250
# Below this a gradient is drawn at the floor: float64 norms go on to 1e-300, a colour scale does not.
LOG_FLOOR = -40.0
T = TypeVar("T")


class Gradients:
    """log10 of grad_rms of every layer over one segment.

    `names` are the channels': the `shown` layers that there are now, in forward order, then those that went, whose past
    is there again when they come back.
    """

    def __init__(self, names: Sequence[str], *, shown: int | None = None, pyramid: Pyramid | None = None) -> None:
        self.names = tuple(names)
        self.shown = len(self.names) if shown is None else shown
        self.pyramid = pyramid or Pyramid(_merges(self.names), capacity=_capacity(self.names))

    def add(self, step: int, rms: Sequence[float | None]) -> None:
        """One reading, a number a layer that is shown."""
        gone = [math.nan] * (len(self.names) - self.shown)
        self.pyramid.add(step, [*map(log_magnitude, rms), *gone])

    def of(self, layers: Sequence[Layer]) -> Gradients:
        """The same past under these layers; one that was not there begins empty."""
        names = tuple(layer.name for layer in layers)
        if names == self.names[: self.shown]:
            return self
        here, place = set(names), {name: n for n, name in enumerate(self.names)}
        # No more than there are layers: names that never come back are not kept for ever.
        channels = (*names, *[name for name in self.names if name not in here][: len(names)])
        sources = [place.get(name) for name in channels]
        pyramid = self.pyramid.remapped(sources, _merges(channels), capacity=_capacity(channels))
        return Gradients(channels, shown=len(names), pyramid=pyramid)

    def before(self, step: int) -> Gradients:
        """Those of the same steps up to this one and without it."""
        return Gradients(self.names, shown=self.shown, pyramid=self.pyramid.before(step))

    def window(self, width: int, first: int, last: int) -> list[tuple[int, list[float]]]:
        """As `Pyramid.window`, of the layers that are shown."""
        return [(bin_, values[: self.shown]) for bin_, values in self.pyramid.window(width, first, last)]

    def __bool__(self) -> bool:
        return bool(self.pyramid)

    def send(self) -> list[LevelSent]:
        """The bins as bytes; the `names` go beside them."""
        return self.pyramid.send()

    def nbytes(self) -> int:
        """Memory the bins take."""
        return self.pyramid.nbytes()


def carried(reading: ReadingsTaken, old: Sequence[Layer], new: Sequence[Layer], structure: int) -> ReadingsTaken:
    """A reading of the `old` layers in the rows of the `new` ones; one that was not there has no values."""
    place = {layer.name: n for n, layer in enumerate(old)}
    sources = [place.get(layer.name) for layer in new]

    def moved(values: Sequence[T], missing: T) -> list[T]:
        return [missing if n is None or n >= len(values) else values[n] for n in sources]

    return msgspec.structs.replace(
        reading,
        values={metric: moved(values, None) for metric, values in reading.values.items()},
        ages=moved(reading.ages, 0),
        statuses=moved(reading.statuses, "used") if reading.statuses else [],
        structure=structure,
    )


def log_magnitude(value: float | None) -> float:
    """log10 of a norm, clipped to what can be drawn; NaN for what is absent or not a number."""
    if value is None or math.isnan(value):
        return math.nan
    return LOG_FLOOR if value <= 10.0**LOG_FLOOR else min(math.log10(value), -LOG_FLOOR)


def _merges(names: Sequence[str]) -> tuple[Merge, ...]:
    mean: Merge = "mean"
    return (mean,) * len(names)


def _capacity(names: Sequence[str]) -> int:
    return max(GRAD_BINS // 16, min(GRAD_BINS, GRAD_BINS * LAYERS_IN_FULL // max(1, len(names))))
