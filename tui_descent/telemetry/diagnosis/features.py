"""The newest window of a run in numbers, from which the rules judge it.

g is the loss of a guess that ignores the input, ln C for C classes. P is the product of the blocks' backprop factors,
‖dL/dh_0‖/‖dL/dh_D‖: by how much backpropagation multiplies the gradient.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken

WINDOW = 60  # how many of the newest steps are judged
LONG_WINDOW = 3 * WINDOW  # how many steps are needed to extrapolate the loss
HALF, THIRD, TAIL = 30, 20, 10  # parts of a window, in steps
# To extrapolate: the last fall from window to window, less CERTAIN standard errors, goes on for AHEAD windows. It is
# scaled twice by the ratio of the last two falls, within MIN_RATIO…MAX_RATIO. At least LEAST of the loss stays.
CERTAIN, AHEAD, MIN_RATIO, MAX_RATIO, LEAST = 2.0, 4.0, 0.5, 1.3, 0.5
SIGNIFICANT = 4.5  # standard errors by which a line through the long window must fall


class Curvature(msgspec.Struct, frozen=True):
    """The Hessian's extreme eigenvalues. `edge`: λmax over the stability limit, None if the limit is not known."""

    lambda_max: float
    lambda_min: float
    edge: float | None


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """A window in numbers; None where nothing was measured or the run is too young."""

    guess: float  # g
    first: float  # the loss at the start
    now: float  # the loss at the end of the window
    fell: float  # fall of the loss over the last third of the window
    fall: float  # the same as a share of the loss
    slope: float  # of the loss, in standard errors
    noise: float  # standard deviation of the losses about their line
    expected: float | None  # the loss to come, extrapolated from the long window
    long_fall: float | None  # over the long window; 0 if that could be noise
    blocks: int
    product: float | None  # P
    first_product: float | None  # P at the first reading
    growth: float | None  # of the blocks' gradients over the second half of the window, as a factor
    update_ratio: float | None  # ‖Δ‖/‖w‖ of the layer that moves most, w as large as Xavier's
    first_update_ratio: float | None  # the same of the median layer at the first reading
    step_per_grad: float | None  # ‖Δ‖/‖g‖, g the gradient, of layers whose update is not rounded to 0
    dead: float  # share of dead units in the worst layer
    first_dead: float | None
    saturated: float
    weight_scale: float  # √width · rms of the blocks' square matrices, at most 1: Xavier's is 1
    cosine: float | None  # of each gradient with the next
    curvature: Curvature | None


class FeatureExtractor:
    """Computes the features of a net with these layers. `rows` has the row of each block's largest layer, in order."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        by_size = sorted(range(len(layers)), key=lambda n: layers[n].params)
        largest = {block: n for n in by_size if (block := layers[n].block) is not None}
        self.rows = [largest[block] for block in sorted(largest)]
        self._layers = layers

    def features(
        self,
        losses: Sequence[float],
        readings: Sequence[ReadingsTaken],
        *,
        first_reading: ReadingsTaken,
        first_loss: float,
        guess: float,
        curvature: Curvature | None,
    ) -> Features:
        """`losses` has up to LONG_WINDOW of the newest losses, `readings` those of the newest window."""
        window, last = losses[-WINDOW:], readings[-1]
        newest = [r for r in readings if r.step > last.step - HALF]
        earlier = statistics.fmean(window[-2 * THIRD : -THIRD])
        fell = earlier - statistics.fmean(window[-THIRD:])
        slope, error, noise = fit_line(window[-2 * THIRD :])
        # Before clipping: clipped gradients cannot grow.
        gradients = [median([clip_factor(r) * v for v in values_of(r, "grad_norm")]) for r in (newest[0], last)]
        products = {r.step: p for r in (first_reading, *newest) if (p := self.product(r)) is not None}
        ratios = [self._weight_scale(r) * v for r in newest for v in values_of(r, "update_ratio")]
        steps = zip(last.values.get("update_norm", ()), last.values.get("grad_norm", ()), strict=False)
        cosines = [r.global_cosine for r in readings if r.global_cosine is not None]
        return Features(
            guess=guess,
            first=first_loss,
            now=statistics.fmean(window[-TAIL:]),
            fell=fell,
            fall=fell / max(abs(earlier), 1e-300),
            slope=slope / max(error, 1e-300),
            noise=noise,
            expected=expected_loss(losses, guess) if len(losses) >= LONG_WINDOW else None,
            long_fall=long_fall(losses, guess) if len(losses) >= LONG_WINDOW else None,
            blocks=len(self.rows),
            product=median([products[r.step] for r in newest if r.step in products]),
            first_product=products.get(first_reading.step),
            growth=gradients[1] / gradients[0] if gradients[0] and gradients[1] is not None else None,
            update_ratio=max(ratios, default=None),
            first_update_ratio=median(
                [self._weight_scale(first_reading) * v for v in values_of(first_reading, "update_ratio")]
            ),
            step_per_grad=median([u / g for u, g in steps if u and g]),
            dead=max(newest_of(readings, "dead_fraction").values(), default=0.0),
            first_dead=max(values_of(first_reading, "dead_fraction"), default=None),
            saturated=max(newest_of(readings, "saturated_fraction").values(), default=0.0),
            weight_scale=self._weight_scale(last),
            cosine=statistics.fmean(cosines) if cosines else None,
            curvature=curvature,
        )

    def product(self, reading: ReadingsTaken) -> float | None:
        """P, or None if no factor was measured."""
        factors = values_of(reading, "backprop_factor")
        return product_of(factors) if factors else None

    def _weight_scale(self, reading: ReadingsTaken) -> float:
        norms = reading.values.get("weight_norm", [])
        sizes = [v / self._layers[n].params ** 0.25 for n in self.rows if n < len(norms) and (v := norms[n])]
        return min(1.0, median(sizes) or 1.0)


def expected_loss(losses: Sequence[float], guess: float) -> float:
    """The loss to come, extrapolated from the last three windows; `losses` has at least LONG_WINDOW.

    Losses above that of a guess count as that: a fall down to it needs no look at the input and promises nothing.
    """
    newest = losses[-LONG_WINDOW:]
    before, between, now = (min(guess, statistics.fmean(newest[n : n + WINDOW])) for n in range(0, LONG_WINDOW, WINDOW))
    _, _, noise = fit_line(newest[-WINDOW:])
    here, fall, earlier = statistics.fmean(newest[-HALF:]), between - now, before - between
    fall -= CERTAIN * noise * math.sqrt(2 / WINDOW)
    if fall <= 0:
        return here
    ratio = min(MAX_RATIO, max(MIN_RATIO, fall / earlier)) if earlier > 0 else MAX_RATIO
    return max(here - AHEAD * fall * ratio**2, LEAST * here)


def long_fall(losses: Sequence[float], guess: float) -> float:
    """How far a line through the last three windows falls; losses above that of a guess count as that."""
    slope, error, _ = fit_line([min(guess, loss) for loss in losses[-LONG_WINDOW:]])
    return -slope * LONG_WINDOW if -slope > SIGNIFICANT * error else 0.0


def product_of(factors: Sequence[float]) -> float:
    """The product, but not 0 by underflow: only if a factor is 0."""
    return max(math.prod(factors), 5e-324 * all(factors))


def newest_of(readings: Sequence[ReadingsTaken], metric: str) -> Mapping[int, float]:
    """For each row the newest value of a metric that not every reading has."""
    return {n: v for r in readings for n, v in enumerate(r.values.get(metric, ())) if v is not None}


def values_of(reading: ReadingsTaken, metric: str) -> list[float]:
    """A metric's values, without the missing ones."""
    return [v for v in reading.values.get(metric, ()) if v is not None]


def clip_factor(reading: ReadingsTaken) -> float:
    """By how much our clipping divided the gradients."""
    before, now = reading.grad_norm_preclip, reading.global_grad_norm
    return 1.0 if before is None or not 0 < now < math.inf else before / now


def fit_line(losses: Sequence[float]) -> tuple[float, float, float]:
    """The slope of the least-squares line, its standard error, and the standard deviation of the losses about it."""
    n, times = len(losses), range(len(losses))
    slope, start = statistics.linear_regression(times, losses)
    rest = math.fsum((y - start - slope * t) ** 2 for t, y in zip(times, losses, strict=True)) / (n - 2)
    return slope, math.sqrt(rest / (n * (n * n - 1) / 12)), math.sqrt(rest)


def median(values: Sequence[float]) -> float | None:
    """The median, or None of no values."""
    return statistics.median(values) if values else None
