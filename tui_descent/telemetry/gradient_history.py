"""The gradient of every layer over the steps of one segment, in which layers may be added and removed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui_descent.protocol.events import Layer, LevelSent
from tui_descent.telemetry.pyramid import Merge, Pyramid

MAX_BINS = 512  # the number of bins of each level, for up to MAX_LAYERS layers
MAX_LAYERS = 250  # with more layers there are fewer bins for each, so the memory is bounded
# Smaller gradients are drawn as if they had this norm. Norms in float64 may be as small as 1e-300, too small for a
# colour scale.
LOG_FLOOR = -40.0


class GradientHistory:
    """log10 of `grad_rms` for each layer, as a pyramid with one channel for each layer.

    The first `shown` of the `names` are the current layers in forward order. The others are layers that were removed;
    their values are kept in case these layers are added again.
    """

    def __init__(self, names: Sequence[str], *, shown: int | None = None, pyramid: Pyramid | None = None) -> None:
        self.names = tuple(names)
        self.shown = len(self.names) if shown is None else shown
        self.pyramid = pyramid or Pyramid(_merges(self.names), capacity=_capacity(self.names))

    def add(self, step: int, rms: Sequence[float | None]) -> None:
        """Add one reading, with a number for each current layer."""
        removed = [math.nan] * (len(self.names) - self.shown)
        self.pyramid.add(step, [*map(log_magnitude, rms), *removed])

    def with_layers(self, layers: Sequence[Layer]) -> GradientHistory:
        """The same history for another list of current layers. A new layer has no values."""
        names = tuple(layer.name for layer in layers)
        if names == self.names[: self.shown]:
            return self
        current, channel = set(names), {name: n for n, name in enumerate(self.names)}
        # To bound the memory, at most as many removed layers are kept as there are current ones.
        channels = (*names, *[name for name in self.names if name not in current][: len(names)])
        sources = [channel.get(name) for name in channels]
        pyramid = self.pyramid.remapped(sources, _merges(channels), capacity=_capacity(channels))
        return GradientHistory(channels, shown=len(names), pyramid=pyramid)

    def before(self, step: int) -> GradientHistory:
        """The part of the history before this step."""
        return GradientHistory(self.names, shown=self.shown, pyramid=self.pyramid.before(step))

    def window(self, width: int, first: int, last: int) -> list[tuple[int, list[float]]]:
        """The same as `Pyramid.window`, but only for the current layers."""
        return [(bin_, values[: self.shown]) for bin_, values in self.pyramid.window(width, first, last)]

    def __bool__(self) -> bool:
        return bool(self.pyramid)

    def send(self) -> list[LevelSent]:
        """The bins as bytes. They do not include `names`, which are sent separately."""
        return self.pyramid.send()

    def nbytes(self) -> int:
        """Memory of the bins in bytes."""
        return self.pyramid.nbytes()


def log_magnitude(value: float | None) -> float:
    """log10 of a norm, clipped to what can be drawn; NaN for a missing value or NaN."""
    if value is None or math.isnan(value):
        return math.nan
    return LOG_FLOOR if value <= 10.0**LOG_FLOOR else min(math.log10(value), -LOG_FLOOR)


def _merges(names: Sequence[str]) -> tuple[Merge, ...]:
    mean: Merge = "mean"
    return (mean,) * len(names)


def _capacity(names: Sequence[str]) -> int:
    return max(MAX_BINS // 16, min(MAX_BINS, MAX_BINS * MAX_LAYERS // max(1, len(names))))
