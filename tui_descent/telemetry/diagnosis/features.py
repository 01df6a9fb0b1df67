"""A window of a run in numbers.

g is the loss of a guess, ln C for C classes; P the product of the blocks' backprop factors, ‖dL/dh_0‖/‖dL/dh_D‖.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken

WINDOW = 60  # the newest steps, which are judged
LONG = 3 * WINDOW  # as many as tell where the loss is going
HALF, THIRD, TAIL = 30, 20, 10  # steps of a window
# A fall counts by what it exceeds so many of its standard errors; it goes on for so many windows, each a step to the
# next as the last was to the one before, and takes no more than half of the loss.
CERTAIN, AHEAD, SLOWS, QUICKENS, LEAST = 2.0, 4.0, 0.5, 1.3, 0.5
SURELY = 4.5  # standard errors that a line through all three windows must fall by


class Curvature(msgspec.Struct, frozen=True):
    """The Hessian's ends; the sharpness over what the rate can bear, None where that is not known."""

    lambda_max: float
    lambda_min: float
    edge: float | None


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """A window in numbers; None where nothing was measured or too little was seen."""

    guess: float
    first: float
    now: float
    fell: float  # over the last third of the window
    fall: float  # the same as a share
    slope: float  # in standard errors
    noise: float  # standard deviation of the window's losses about their line
    coming: float | None  # the loss to come, if it goes on as in the last three windows
    fallen: float | None  # over the last three windows, 0 where that could be noise
    blocks: int
    product: float | None
    first_product: float | None
    growth: float | None  # of the blocks' gradients over the window's second half
    moved: float | None  # by the layer that moves most
    first_moved: float | None
    stride: float | None  # ‖Δ‖/‖g‖, of the layers whose update is not rounded away
    dead: float
    first_dead: float | None
    saturated: float
    scale: float  # of the blocks' square matrices, 1 where they are as large as Xavier draws them, or larger
    cosine: float | None
    curvature: Curvature | None


class Gauge:
    """Takes the signs of a net with these layers, `rows` naming each block's largest one in forward order."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        by_size = sorted(range(len(layers)), key=lambda n: layers[n].params)
        largest = {block: n for n in by_size if (block := layers[n].block) is not None}
        self.rows = [largest[block] for block in sorted(largest)]
        self._layers = layers

    def signs(
        self,
        losses: Sequence[float],
        readings: Sequence[ReadingsTaken],
        *,
        begun: ReadingsTaken,
        first: float,
        guess: float,
        curvature: Curvature | None,
    ) -> Signs:
        """`losses` are the newest, up to LONG; `readings` those of the newest window, `begun` the first of all."""
        window, last = losses[-WINDOW:], readings[-1]
        newest = [r for r in readings if r.step > last.step - HALF]
        earlier = statistics.fmean(window[-2 * THIRD : -THIRD])
        fell = earlier - statistics.fmean(window[-THIRD:])
        slope, error, noise = line(window[-2 * THIRD :])
        # As the loss gave them: those that a clip leaves cannot grow.
        gradients = [median([unclipped(r) * v for v in values_of(r, "grad_norm")]) for r in (newest[0], last)]
        products = {r.step: p for r in (begun, *newest) if (p := self.product(r)) is not None}
        moves = [self._scale(r) * v for r in newest for v in values_of(r, "update_ratio")]
        moved = zip(last.values.get("update_norm", ()), last.values.get("grad_norm", ()), strict=False)
        cosines = [r.global_cosine for r in readings if r.global_cosine is not None]
        return Signs(
            guess=guess,
            first=first,
            now=statistics.fmean(window[-TAIL:]),
            fell=fell,
            fall=fell / max(abs(earlier), 1e-300),
            slope=slope / max(error, 1e-300),
            noise=noise,
            coming=coming(losses, guess) if len(losses) >= LONG else None,
            fallen=fallen(losses, guess) if len(losses) >= LONG else None,
            blocks=len(self.rows),
            product=median([products[r.step] for r in newest if r.step in products]),
            first_product=products.get(begun.step),
            growth=gradients[1] / gradients[0] if gradients[0] and gradients[1] is not None else None,
            moved=max(moves, default=None),
            first_moved=median([self._scale(begun) * v for v in values_of(begun, "update_ratio")]),
            stride=median([u / g for u, g in moved if u and g]),
            dead=max(newest_of(readings, "dead_fraction").values(), default=0.0),
            first_dead=max(values_of(begun, "dead_fraction"), default=None),
            saturated=max(newest_of(readings, "saturated_fraction").values(), default=0.0),
            scale=self._scale(last),
            cosine=statistics.fmean(cosines) if cosines else None,
            curvature=curvature,
        )

    def product(self, reading: ReadingsTaken) -> float | None:
        """P; None where no factor was measured."""
        factors = values_of(reading, "backprop_factor")
        return product_of(factors) if factors else None

    def _scale(self, reading: ReadingsTaken) -> float:
        """√width · rms of the blocks' square matrices, at most 1."""
        norms = reading.values.get("weight_norm", [])
        sizes = [v / self._layers[n].params ** 0.25 for n in self.rows if n < len(norms) and (v := norms[n])]
        return min(1.0, median(sizes) or 1.0)


def coming(losses: Sequence[float], guess: float) -> float:
    """The loss to come, from the last three windows of `losses`, which hold at least LONG.

    What lies above the loss of a guess falls without a look at the input: it says nothing of what follows below.
    """
    newest = losses[-LONG:]
    before, between, now = (min(guess, statistics.fmean(newest[n : n + WINDOW])) for n in range(0, LONG, WINDOW))
    _, _, noise = line(newest[-WINDOW:])
    here, fall, earlier = statistics.fmean(newest[-HALF:]), between - now, before - between
    fall -= CERTAIN * noise * math.sqrt(2 / WINDOW)
    if fall <= 0:
        return here
    ratio = min(QUICKENS, max(SLOWS, fall / earlier)) if earlier > 0 else QUICKENS
    return max(here - AHEAD * fall * ratio**2, LEAST * here)


def fallen(losses: Sequence[float], guess: float) -> float:
    """How far a line through the last three windows falls, what lies above the loss of a guess left out."""
    slope, error, _ = line([min(guess, loss) for loss in losses[-LONG:]])
    return -slope * LONG if -slope > SURELY * error else 0.0


def product_of(factors: Sequence[float]) -> float:
    """A product too small for a float is not one of a factor 0."""
    return max(math.prod(factors), 5e-324 * all(factors))


def newest_of(readings: Sequence[ReadingsTaken], metric: str) -> Mapping[int, float]:
    """Row by row the newest value of a metric that not every reading has."""
    return {n: v for r in readings for n, v in enumerate(r.values.get(metric, ())) if v is not None}


def values_of(reading: ReadingsTaken, metric: str) -> list[float]:
    """Those of a metric's values that were measured."""
    return [v for v in reading.values.get(metric, ()) if v is not None]


def unclipped(reading: ReadingsTaken) -> float:
    """How many times larger the gradients were before our clip."""
    before, now = reading.grad_norm_preclip, reading.global_grad_norm
    return 1.0 if before is None or not 0 < now < math.inf else before / now


def line(losses: Sequence[float]) -> tuple[float, float, float]:
    """The slope of a straight line through the losses, its standard error, and how far they lie about the line."""
    n, times = len(losses), range(len(losses))
    slope, start = statistics.linear_regression(times, losses)
    rest = math.fsum((y - start - slope * t) ** 2 for t, y in zip(times, losses, strict=True)) / (n - 2)
    return slope, math.sqrt(rest / (n * (n * n - 1) / 12)), math.sqrt(rest)


def median(values: Sequence[float]) -> float | None:
    """None of no values."""
    return statistics.median(values) if values else None
