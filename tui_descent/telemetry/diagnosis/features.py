"""Features: the newest steps of a run in numbers. The rules judge the run by them.

g is the loss of a guess that ignores the input, ln C for C classes. P is the product of the blocks' backprop factors,
‖dL/dh_0‖/‖dL/dh_D‖: the factor by which backpropagation multiplies the gradient.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken
from tui_descent.protocol.layer_names import of_one_net

WINDOW = 60  # how many of the newest steps are judged
LONG_WINDOW = 3 * WINDOW  # how many steps are needed to extrapolate the loss
HALF, THIRD, TAIL = 30, 20, 10  # parts of a window, in steps
# A run's first loss is the mean of so many losses, unless they move beyond their scatter. Then it is the mean of the
# first FEW, or, if that is above the very first one by the share LEAPT, the first one alone.
FIRST_STEPS, FEW, LEAPT = 20, 3, 1.0
OUTLIES = 2.0  # standard errors by which the first losses then differ
ALIKE = 1.0  # von Neumann's ratio below which neighbouring losses are alike
NEARLY_ALL = 0.95  # of a window's losses are above its `low`
NOISY = 0.6  # standard deviation of the losses over their mean, above which a slow fall cannot be seen
RANKS_DIFFER = 3.0  # standard errors
# The extrapolation assumes that the last fall from window to window, minus CERTAIN standard errors, continues for AHEAD
# windows. This fall is scaled twice by the ratio of the last two falls, limited to MIN_RATIO…MAX_RATIO. At least the
# share LEAST of the loss remains.
CERTAIN, AHEAD, MIN_RATIO, MAX_RATIO, LEAST = 2.0, 4.0, 0.5, 1.3, 0.5
SIGNIFICANT = 4.5  # standard errors by which a line through the long window must fall
LIKE_LAYERS = 4  # layers of one shape in a net without blocks, so that their gradients can be compared
NOT_COMPARED = ("Embedding", "Norm", "LSTM", "GRU", "RNN")  # kinds of layers whose gradients have another scale
SPOILS = 0.3  # ‖Δ‖/‖w‖ of an update that changes a net beyond recognition
GROWS_SHARE = 0.75  # of these layers have a larger gradient than the one before: then it is a trend


class Curvature(msgspec.Struct, frozen=True):
    """The Hessian's extreme eigenvalues. `edge`: λmax over the stability limit, None if the limit is not known."""

    lambda_max: float
    lambda_min: float
    edge: float | None


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """A window in numbers; None where nothing was measured or the run is too young."""

    guess: float  # g
    first: float  # the loss at the window's start
    run_first: float  # the loss at the run's start
    best: float  # the lowest mean of ten losses of the run
    mean: float  # of the window's losses
    low: float  # nearly all losses of the window are above it
    moved: bool  # whether they scatter little, or differ from the run's first losses beyond their scatter
    left_start: bool  # whether all losses since the first ones, or the window's start, are clearly above these
    now: float  # the loss at the end of the window
    fell: float  # fall of the loss over the last third of the window
    fall: float  # the same as a share of the loss
    slope: float  # of the loss, in standard errors
    noise: float  # standard deviation of the losses about their line
    expected: float | None  # the loss to come, extrapolated from the long window
    long_fall: float | None  # over the long window; 0 if that could be noise
    long_fell: float | None  # over the long window, by the line through it
    long_slope: float | None  # of the line through the long window, in standard errors
    steps: int  # since the window's start
    readings: int  # since the window's start
    blocks: int
    product: float | None  # P
    first_product: float | None  # P at the first reading, or at the next ones if the first update was not large
    early_product: float | None  # P at the first reading that has it, even after large updates
    update_ratio: float | None  # ‖Δ‖/‖w‖ of the layer that moves most, w as large as Xavier's
    first_update_ratio: float | None  # the same of the median layer at the first reading
    largest_update: float | None  # the same of the median layer, the largest since the window's start
    peak: float  # the highest loss of two steps in a row since the window's start
    movement: float | None  # ‖Δ‖/‖w‖ of all parameters together
    gradient_kept: float | None  # the norm of all gradients over that at the window's start
    step_per_grad: float | None  # ‖Δ‖/‖g‖, g the gradient, of layers whose update is not rounded to 0
    dead: float  # share of dead units in the worst layer
    first_dead: float | None
    saturated: float
    first_saturated: float | None
    weight_size: float | None  # √width · rms of the blocks' square matrices: Xavier's is 1
    weight_scale: float  # the same, at most 1; 1 if it is not known
    silent_row: int | None  # the last of the first layers whose gradient is exactly 0 while later ones have one
    no_gradient: bool  # every gradient is exactly 0
    no_weight_gradient: bool  # the same of weights that are not all 0 themselves; biases may have a gradient
    kept: float | None  # the median layer's weight norm over that of the run's first reading
    kept_recently: float | None  # the same over the window's first reading
    decay_share: float | None  # what weight decay adds to the step over what the gradient does, in the median layer
    decayed_for: float | None  # rate × decay × steps: for how many time constants the decay has acted
    rate_left: float | None  # the learning rate over the largest one since the window's start
    lowest: float  # the lowest mean of ten losses since the window's start
    lowest_since: float  # the same since the change that began the window was complete
    last_half: tuple[float, float] | None  # by which share the loss has fallen over it, at least and at most
    cosine: float | None  # of each gradient with the next
    curvature: Curvature | None


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers since the run's start or the last intervention, from which the features are computed.

    `losses` has up to LONG_WINDOW of the newest losses, `readings` those of the newest window. `early` are the readings
    of the window's first steps. `decoupled`: the decay acts on the weights directly, not through the gradient.
    """

    losses: Sequence[float]
    readings: Sequence[ReadingsTaken]
    first_reading: ReadingsTaken
    run_reading: ReadingsTaken | None
    first_loss: float
    left_start: bool
    moved: bool
    run_first_loss: float | None
    best: float
    guess: float
    steps: int
    taken: int
    curvature: Curvature | None
    early: Sequence[ReadingsTaken]
    first_saturated: float | None
    largest_update: float | None
    peak: float
    rate: float | None
    largest_rate: float | None
    weight_decay: float | None
    decoupled: bool
    lowest: float
    lowest_since: float
    last_half: tuple[float, float] | None

    @property
    def is_long(self) -> bool:
        """Whether there are losses of a whole long window."""
        return len(self.losses) >= LONG_WINDOW

    @property
    def newest_readings(self) -> list[ReadingsTaken]:
        """The readings of the last half of a window."""
        return [reading for reading in self.readings if reading.step > self.readings[-1].step - HALF]


class FeatureExtractor:
    """Computes the features of a net with these layers.

    `rows` has the row of each block's largest layer, in order. In a net without blocks, such as one that calls its
    layers by name, `alike` are the rows of layers of one shape: their gradients can be compared. Of several `nets` only
    one is looked at.
    """

    def __init__(self, layers: Sequence[Layer], nets: Sequence[str] = ()) -> None:
        layers = of_one_net(layers, nets)
        by_size = sorted(range(len(layers)), key=lambda n: layers[n].params)
        largest = {block: n for n in by_size if (block := layers[n].block) is not None}
        self.rows = [largest[block] for block in sorted(largest)]
        self.alike = _alike(layers) if len(self.rows) < LIKE_LAYERS and len(nets) < 2 else []
        self._layers = layers

    def features(self, w: Window) -> Features:
        """What the losses and readings of a window show."""
        window, newest, last = w.losses[-WINDOW:], w.newest_readings, w.readings[-1]
        earlier = statistics.fmean(window[-2 * THIRD : -THIRD])
        fell = earlier - statistics.fmean(window[-THIRD:])
        slope, error, noise = fit_line(window[-2 * THIRD :])
        now, two = statistics.fmean(window[-TAIL:]), w.readings[-2:]
        long_slope, long_error, _ = fit_line(w.losses[-LONG_WINDOW:]) if w.is_long else (0.0, 1.0, 0.0)
        early_product = next((p for r in (w.first_reading, *w.early) if (p := self.product(r)) is not None), None)
        return Features(
            guess=w.guess,
            first=w.first_loss,
            run_first=w.first_loss if w.run_first_loss is None else w.run_first_loss,
            best=min(w.best, now),
            mean=statistics.fmean(window),
            low=low_of(window),
            left_start=w.left_start,
            moved=w.moved,
            now=now,
            fell=fell,
            fall=fell / max(abs(earlier), 1e-300),
            slope=slope / max(error, 1e-300),
            noise=noise,
            expected=expected_loss(w.losses, w.guess) if w.is_long else None,
            long_fall=long_fall(w.losses, w.guess) if w.is_long else None,
            long_fell=-long_slope * LONG_WINDOW if w.is_long else None,
            long_slope=long_slope / max(long_error, 1e-300) if w.is_long else None,
            steps=w.steps,
            readings=w.taken,
            blocks=len(self.rows) or len(self.alike),
            product=self._newest_product(w.readings),
            first_product=early_product if self._started_slowly(w) else self.product(w.first_reading),
            early_product=early_product,
            update_ratio=self._largest_update_ratio(newest),
            first_update_ratio=self.update_ratio(w.first_reading),
            largest_update=w.largest_update,
            peak=w.peak,
            movement=_movement(last),
            gradient_kept=_ratio(last.global_grad_norm, w.readings[0].global_grad_norm),
            step_per_grad=_step_per_grad(last),
            dead=max(newest_of(w.readings, "dead_fraction").values(), default=0.0),
            first_dead=_first_share((w.first_reading, *w.early), "dead_fraction"),
            saturated=max(newest_of(w.readings, "saturated_fraction").values(), default=0.0),
            first_saturated=w.first_saturated,
            weight_size=self._weight_size(last),
            weight_scale=self._weight_scale(last),
            silent_row=_silent_row(w.readings),
            no_gradient=len(two) > 1 and all(r.global_grad_norm == 0 for r in two),
            no_weight_gradient=len(two) > 1 and all(_only_biases_learn(r) for r in two),
            kept=_kept(w.run_reading, last),
            kept_recently=_kept(w.first_reading, last),
            decay_share=_decay_share(newest, w.weight_decay, w.rate if w.decoupled else None),
            decayed_for=None if w.weight_decay is None or w.rate is None else w.rate * w.weight_decay * w.steps,
            rate_left=w.rate / w.largest_rate if w.rate is not None and w.largest_rate else None,
            lowest=min(w.lowest, now),
            lowest_since=min(w.lowest_since, now),
            last_half=w.last_half,
            cosine=_mean_cosine(w.readings),
            curvature=w.curvature,
        )

    def _started_slowly(self, w: Window) -> bool:
        return (self.update_ratio(w.first_reading) or 0.0) < SPOILS

    def _largest_update_ratio(self, readings: Sequence[ReadingsTaken]) -> float | None:
        """The update of the layer that moves most; None if none was measured."""
        ratios = (self._weight_scale(r) * v for r in readings for v in values_of(r, "update_ratio"))
        return max(ratios, default=None)

    def _newest_product(self, readings: Sequence[ReadingsTaken]) -> float | None:
        """The median P of the newest readings; if these have only norms, the last known P."""
        known = [(r.step, p) for r in readings if (p := self.product(r)) is not None]
        newest = [p for step, p in known if step > readings[-1].step - HALF]
        return median(newest or [p for _, p in known[-1:]])

    def product(self, reading: ReadingsTaken) -> float | None:
        """P. Without blocks, the first gradient over the last of layers of one shape; None if neither was measured."""
        known = enumerate(reading.values.get("backprop_factor", ()))
        factors = [v for n, v in known if v is not None and self._layers[n].block is not None]
        if factors:
            return product_of(factors)
        rms = reading.values.get("grad_rms", [])
        sizes = [value for n in self.alike if n < len(rms) and (value := rms[n]) is not None]
        if len(sizes) < LIKE_LAYERS or len(sizes) < len(self.alike) or not sizes[-1]:
            return None
        ratio = sizes[0] / sizes[-1]
        steps = list(itertools.pairwise(sizes))
        with_trend = sum((later > earlier) == (ratio < 1) for earlier, later in steps)
        return ratio if with_trend >= GROWS_SHARE * len(steps) else 1.0

    def update_ratio(self, reading: ReadingsTaken) -> float | None:
        """‖Δ‖/‖w‖ of the median layer, w as large as Xavier's."""
        return median([self._weight_scale(reading) * v for v in values_of(reading, "update_ratio")])

    def _weight_size(self, reading: ReadingsTaken) -> float | None:
        norms = reading.values.get("weight_norm", [])
        return median([v / self._layers[n].params ** 0.25 for n in self.rows if n < len(norms) and (v := norms[n])])

    def _weight_scale(self, reading: ReadingsTaken) -> float:
        return min(1.0, self._weight_size(reading) or 1.0)


def _alike(layers: Sequence[Layer]) -> list[int]:
    """The rows of the largest group of layers with the same kind and size, in forward order."""
    groups: dict[tuple[str, int], list[int]] = {}
    for n, layer in enumerate(layers):
        if not any(kind in layer.kind for kind in NOT_COMPARED) and layer.not_measured is None:
            groups.setdefault((layer.kind, layer.params), []).append(n)
    largest = max(groups.values(), key=len, default=[])
    return largest if len(largest) >= LIKE_LAYERS else []


def _silent_row(readings: Sequence[ReadingsTaken]) -> int | None:
    """Of the first layers, whose gradient is exactly 0, the last one. Later layers must have a gradient, in two
    readings.
    """
    rows = []
    for reading in readings[-2:]:
        norms = [(n, v) for n, v in enumerate(reading.values.get("grad_norm", ())) if v is not None]
        zero = next((k for k, (_, v) in enumerate(norms) if v != 0), 0)
        rows.append(norms[zero - 1][0] if zero else None)
    return rows[-1] if len(rows) == 2 and rows[0] == rows[1] else None


def _movement(reading: ReadingsTaken) -> float | None:
    """‖Δ‖/‖w‖ of all parameters together; None if they were not measured or are all 0."""
    update, weight = (math.hypot(*values_of(reading, metric)) for metric in ("update_norm", "weight_norm"))
    return _ratio(update, weight)


def _ratio(now: float | None, before: float | None) -> float | None:
    return now / before if now and before else None


def _step_per_grad(reading: ReadingsTaken) -> float | None:
    """The median layer's ‖Δ‖/‖g‖, of layers that have both."""
    norms = zip(reading.values.get("update_norm", ()), reading.values.get("grad_norm", ()), strict=False)
    return median([update / grad for update, grad in norms if update and grad])


def _first_share(readings: Sequence[ReadingsTaken], metric: str) -> float | None:
    """The largest share of a layer's units in the first reading that has any."""
    return next((max(shares) for r in readings if (shares := values_of(r, metric))), None)


def _decay_share(readings: Sequence[ReadingsTaken], decay: float | None, rate: float | None) -> float | None:
    """What weight decay adds to a step over what else is in it: the median over layers, then over readings.

    λ‖w‖/‖g‖ where the decay is added to the gradient. With a `rate` η, where it acts on the weights directly: ηλ‖w‖
    over the norm of the whole update.
    """
    if not decay:
        return None
    factor, metric = (decay, "grad_norm") if rate is None else (decay * rate, "update_norm")
    shares = []
    for reading in readings:
        norms = zip(reading.values.get("weight_norm", ()), reading.values.get(metric, ()), strict=False)
        shares.append(median([factor * weight / size for weight, size in norms if weight and size]))
    return median([share for share in shares if share is not None])


def _mean_cosine(readings: Sequence[ReadingsTaken]) -> float | None:
    cosines = [r.global_cosine for r in readings if r.global_cosine is not None]
    return statistics.fmean(cosines) if cosines else None


def _only_biases_learn(reading: ReadingsTaken) -> bool:
    """Whether each layer's weight has a gradient of exactly 0. False if a weight is 0, because that alone could be the
    reason.
    """
    norms = values_of(reading, "grad_norm")
    return bool(norms) and not any(norms) and all(values_of(reading, "weight_norm"))


def _kept(before: ReadingsTaken | None, now: ReadingsTaken) -> float | None:
    """The median layer's weight norm now divided by its norm before. Layers that grew from 0, such as norms, do not
    count.
    """
    if before is None or before.structure != now.structure:
        return None
    pairs = zip(before.values.get("weight_norm", ()), now.values.get("weight_norm", ()), strict=False)
    return median([new / old for old, new in pairs if old and new is not None])


def first_level(losses: Sequence[float], *, otherwise: float) -> float:
    """The loss at a start: the mean of the first losses if they only scatter, a value given otherwise if they move.

    They move if the first few, or the first one, lie outside the scatter of all, or if neighbours are alike, as on a
    curve (von Neumann's ratio, 2 for independent numbers). Of positive losses the logarithms are compared, since a loss
    that diverges grows by factors.
    """
    if len(losses) < FIRST_STEPS:
        return otherwise
    values = _logs(losses)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    few = statistics.fmean(values[:FEW])
    moves = abs(few - mean) > OUTLIES * spread / math.sqrt(FEW) or abs(values[0] - mean) > OUTLIES * spread
    changes = math.fsum((b - a) ** 2 for a, b in itertools.pairwise(values))
    moves = moves or changes < ALIKE * math.fsum((value - mean) ** 2 for value in values)
    return otherwise if moves else statistics.fmean(losses)


def low_of(losses: Sequence[float]) -> float:
    """A value that nearly all of the losses exceed. A mean may be a few odd batches."""
    return sorted(losses)[int((1 - NEARLY_ALL) * len(losses))]


def differ(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two samples differ in their ranks, by the rank-sum test of Mann and Whitney: heavy tails and single odd
    batches do not count.
    """
    n, m = len(losses), len(others)
    if not n or not m:
        return False
    ordered = sorted(others)
    below = sum((bisect.bisect_left(ordered, x) + bisect.bisect_right(ordered, x)) / 2 for x in losses)
    return abs(below - n * m / 2) > RANKS_DIFFER * math.sqrt(n * m * (n + m + 1) / 12)


def scatter_of(losses: Sequence[float]) -> float:
    """The standard deviation of the losses over the size of their mean."""
    return statistics.pstdev(losses) / max(abs(statistics.fmean(losses)), 1e-300)


def far_below(first: float, others: Sequence[float]) -> bool:
    """Whether a first loss is further below all others than these are apart, and they scatter little."""
    if first * (1 + LEAPT) > min(others) or scatter_of(others) > NOISY:
        return False
    value, *values = _logs([first, *others])
    return min(values) - value > max(values) - min(values)


def _logs(losses: Sequence[float]) -> list[float]:
    return [math.log(loss) for loss in losses] if min(losses) > 0 else list(losses)


def expected_loss(losses: Sequence[float], guess: float) -> float:
    """The loss to come, extrapolated from the last three windows; `losses` has at least LONG_WINDOW.

    Losses above that of a guess count as the loss of a guess: a net can fall to that loss without using its input, so
    such a fall promises nothing.
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
    """How far a line through the last three windows falls. Losses above that of a guess are cut to it."""
    slope, error, _ = fit_line([min(guess, loss) for loss in losses[-LONG_WINDOW:]])
    return -slope * LONG_WINDOW if -slope > SIGNIFICANT * error else 0.0


def product_of(factors: Sequence[float]) -> float:
    """The product of the factors. It is 0 only if a factor is 0, not by underflow."""
    return max(math.prod(factors), 5e-324 * all(factors))


def newest_of(readings: Iterable[ReadingsTaken], metric: str) -> Mapping[int, float]:
    """The newest value in each row, for a metric that not every reading has."""
    return {n: v for r in readings for n, v in enumerate(r.values.get(metric, ())) if v is not None}


def values_of(reading: ReadingsTaken, metric: str) -> list[float]:
    """A metric's values, without the missing ones."""
    return [v for v in reading.values.get(metric, ()) if v is not None]


def fit_line(losses: Sequence[float]) -> tuple[float, float, float]:
    """The slope of the least-squares line, its standard error, and the standard deviation of the losses about it."""
    n = len(losses)
    middle, mean = (n - 1) / 2, math.fsum(losses) / n
    spread = n * (n * n - 1) / 12
    slope = math.fsum((t - middle) * (y - mean) for t, y in enumerate(losses)) / spread
    rest = math.fsum((y - mean - slope * (t - middle)) ** 2 for t, y in enumerate(losses)) / (n - 2)
    return slope, math.sqrt(rest / spread), math.sqrt(rest)


def median(values: Sequence[float]) -> float | None:
    """The median, or None of no values."""
    return statistics.median(values) if values else None
