"""What is wrong, where, how sure, and which knob helps in this case: from losses and readings alone, without torch.

g is the loss of a guess, ln C for C classes; P the product of the blocks' backprop factors, ‖dL/dh_0‖/‖dL/dh_D‖.
The thresholds come from nets drawn at random and labelled by trying changes out (`tests/diagnosis_nets.py`).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from tui_descent.protocol.events import Advice, Layer, ReadingsTaken

Name = Literal[
    "vanishing", "exploding", "diverged", "diverging", "dead units", "saturated", "plateau", "saddle",
    "rate too small", "rate at the edge", "healthy",
]  # fmt: skip

DARES = 50  # steps since the start or the last intervention before anything but "diverged" is said
WINDOW = 60  # the newest steps, which are judged
HALF, THIRD, TAIL, FEW = 30, 20, 10, 3  # of its steps
HOT = 5.0  # × g at the start: the outputs were far too large
RISEN, OVER_GUESS = 1.5, 1.3
STUCK = 0.81  # × g: a loss above it has learnt next to nothing
ABOVE, FALLS = 1.1, 0.07  # a loss over 1.1 g that falls by 7 % in a third of a window is on its way
STANDS = 0.02  # where g is not known: a loss that falls by less in a third of a window
LEAVES = -4.5  # the loss's slope in standard errors: it leaves by itself if the gradient does not shrink meanwhile
FADED, GROWN = 3e-3, 10.0  # P
SIGMOID = 0.3  # a sigmoid's block multiplies by about ¼, whatever its weights
DEAD, SATURATED = 0.9, 0.5  # shares of a layer
CRAWLS, WALKS, HURLS = 6e-4, 3e-3, 0.05  # ‖Δ‖ over the norm of weights of the size that Xavier draws
SHORT, LONG = 0.015, 0.3  # ‖Δ‖/‖g‖ of plain descent, which is η; η/(1 − β) with momentum
BOUNCES = -0.8  # cosine of one gradient with the next
SMALL_WEIGHTS = 0.6  # √width · rms of a square weight; Xavier draws it at 1, He at 1.4
DEEP = 6  # blocks, from which on a slope of 0.2 is not enough to get through
ADAPTIVE = ("adam", "adamw", "rmsprop")


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its numbers; None where nobody said. `classes` only for a cross-entropy."""

    classes: int | None = None
    optimizer: str | None = None
    activation: str | None = None
    residual: bool | None = None
    norm: bool | None = None


SLOWED = (Advice("undo", "1", "u"), Advice("lr", "/10", "["))


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the run up, or "healthy". `sure` is 0…1; `advice` stands best first and may be empty."""

    finding: Name
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an intervention was expected to lead to and what the next window showed."""

    predicted: Name
    happened: Name
    held: bool


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """A window in numbers; None where nothing was measured."""

    guess: float
    first: float
    now: float
    fall: float  # over the last third of the window, as a share
    slope: float  # in standard errors
    blocks: int
    product: float | None
    first_product: float | None
    growth: float | None  # of the blocks' gradients over the window's second half
    moved: float | None  # by the layer that moves most
    first_moved: float | None
    stride: float | None
    dead: float
    saturated: float
    small: bool  # weights
    cosine: float | None
    curvature: tuple[float, float, float | None] | None


class Diagnosis:
    """Fed with a run's losses and readings, asked for its `finding` at any time; no knob but `knobs` is advised."""

    def __init__(self, layers: Sequence[Layer], *, knobs: Collection[str], situation: Situation | None = None) -> None:
        self.situation = situation or Situation()
        self.outcome: Outcome | None = None
        self._layers, self._knobs = tuple(layers), frozenset(knobs)
        self._run_first: float | None = None
        by_size = sorted(range(len(layers)), key=lambda n: layers[n].params)
        largest = {block: n for n in by_size if (block := layers[n].block) is not None}
        self._rows = [largest[block] for block in sorted(largest)]
        self._predicted: Name | None = None
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._from, self._seen = step, 0
        self._firsts: list[float] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._broke_at: int | None = None
        self._first: ReadingsTaken | None = None
        self._readings: deque[ReadingsTaken] = deque(maxlen=WINDOW)
        self._curvature: tuple[float, float, float | None] | None = None

    def stepped(self, step: int, loss: float) -> None:
        """The loss that update `step` was computed from; NaN and infinities too."""
        if self._broke_at is not None or not math.isfinite(loss):
            self._broke_at = step if self._broke_at is None else self._broke_at
        else:
            self._run_first = loss if self._run_first is None else self._run_first
            self._firsts += [loss] if len(self._firsts) < FEW else []
            self._losses.append(loss)
            self._seen += 1
        filled = self._seen >= WINDOW or self._broke_at is not None
        if self._predicted is not None and filled and (found := self.finding()) is not None:
            held = (found.finding == "healthy") == (self._predicted == "healthy")
            self.outcome = Outcome(predicted=self._predicted, happened=found.finding, held=held)
            self._predicted = None

    def read(self, reading: ReadingsTaken) -> None:
        """The readings of one step, of every one or now and then; those from before an intervention do not count."""
        if reading.step >= self._from:
            self._first = self._first or reading
            self._readings.append(reading)
            while self._readings[0].step <= reading.step - WINDOW:
                self._readings.popleft()

    def curvature(self, lambda_max: float, lambda_min: float, limit: float | None = None) -> None:
        """The Hessian's ends; `limit` is the sharpness the present rate can bear, 2/η for plain descent."""
        self._curvature = (lambda_max, lambda_min, limit)

    def intervened(self, step: int, knob: str | None = None, value: str = "", *, old: str = "") -> None:
        """A turn before update `step`: a new window. If the knob is named, an `outcome` follows when that is full."""
        before = self.finding()
        self._predicted, self.outcome = None, None
        if before is not None and knob is not None:
            helps = before.finding == "healthy" or any(agrees(a, knob, value, old) for a in before.advice)
            self._predicted = "healthy" if helps else before.finding
        told = {"residual": value != "off", "norm": value != "none", "activation": value, "optimizer": value}
        if knob in told:
            self.situation = msgspec.structs.replace(self.situation, **{knob: told[knob]})
        self._begin(step)

    def rewound(self, step: int, knobs: Mapping[str, str]) -> None:
        """The run stands before update `step` with these values: a new window."""
        self._predicted, self.outcome = None, None
        known = {name: value for name, value in knobs.items() if value not in ("", "mixed")}
        told = {name: known[name] for name in ("activation", "optimizer") if name in known}
        flags = {name: known[name] not in ("off", "none") for name in ("residual", "norm") if name in known}
        self.situation = msgspec.structs.replace(self.situation, **told, **flags)
        self._begin(step)

    def offer(self, knob: str) -> None:
        """One more thing that can be advised."""
        self._knobs |= {knob}

    def finding(self) -> Finding | None:
        """What is wrong now, or "healthy"; None while too little was seen to dare."""
        if self._broke_at is not None:
            # Weights that hold NaN are cured by no knob: what helps, helps after the undo.
            cure = tuple(a for a in SLOWED if {"undo", a.knob} <= self._knobs)
            return Finding(finding="diverged", sure=1.0, evidence={"step": float(self._broke_at)}, advice=cure)
        if self._seen < DARES or self._first is None:
            return None
        signs = self._signs(self._first)
        name, sure = judge(signs, self.situation)
        where, evidence = self._evidence(name, signs)
        helps = tuple(a for a in advice(name, signs, self.situation) if a.knob in self._knobs)
        return Finding(finding=name, layer=where, sure=round(sure, 2), evidence=evidence, advice=helps)

    def _signs(self, first: ReadingsTaken) -> Signs:
        losses, last = list(self._losses), self._readings[-1]
        newest = [r for r in self._readings if r.step > last.step - HALF]
        earlier = statistics.fmean(losses[-2 * THIRD : -THIRD])
        # As the loss gave them: those that a clip leaves cannot grow.
        gradients = [_median([_unclipped(r) * v for v in values_of(r, "grad_norm")]) for r in (newest[0], last)]
        # A product too small for a float is not one of a factor 0.
        factors = {r.step: f for r in (first, *newest) if (f := values_of(r, "backprop_factor"))}
        products = {step: max(math.prod(f), 5e-324 * all(f)) for step, f in factors.items()}
        moves = [self._scale(r) * v for r in newest for v in values_of(r, "update_ratio")]
        moved = zip(last.values.get("update_norm", ()), last.values.get("grad_norm", ()), strict=False)
        cosines = [r.global_cosine for r in self._readings if r.global_cosine is not None]
        assert self._run_first is not None
        return Signs(
            guess=math.log(self.situation.classes) if self.situation.classes else self._run_first,
            first=statistics.fmean(self._firsts),
            now=statistics.fmean(losses[-TAIL:]),
            fall=(earlier - statistics.fmean(losses[-THIRD:])) / max(abs(earlier), 1e-300),
            slope=_slope(losses[-2 * THIRD :]),
            blocks=len(self._rows),
            product=_median([products[r.step] for r in newest if r.step in products]),
            first_product=products.get(first.step),
            growth=gradients[1] / gradients[0] if gradients[0] and gradients[1] is not None else None,
            moved=max(moves, default=None),
            first_moved=_median([self._scale(first) * v for v in values_of(first, "update_ratio")]),
            stride=_median([u / g for u, g in moved if u is not None and g]),
            dead=max(self._newest("dead_fraction").values(), default=0.0),
            saturated=max(self._newest("saturated_fraction").values(), default=0.0),
            small=self._scale(last) < SMALL_WEIGHTS,
            cosine=statistics.fmean(cosines) if cosines else None,
            curvature=self._curvature,
        )

    def _scale(self, reading: ReadingsTaken) -> float:
        """√width · rms of the blocks' square matrices, 1 where they are as large as Xavier draws them, or larger."""
        norms = reading.values.get("weight_norm", [])
        sizes = [v / self._layers[n].params ** 0.25 for n in self._rows if n < len(norms) and (v := norms[n])]
        return min(1.0, _median(sizes) or 1.0)

    def _newest(self, metric: str) -> dict[int, float]:
        """Row by row the newest value of a metric that not every reading has."""
        return {n: v for r in self._readings for n, v in enumerate(r.values.get(metric, ())) if v is not None}

    def _evidence(self, name: Name, signs: Signs) -> tuple[str | None, dict[str, float | str]]:
        """The layer it is about, if it is one, and the numbers it stands on."""
        numbers = {"loss": signs.now, "product": signs.product, "update": signs.moved, "cosine": signs.cosine}
        shown: dict[str, float | str] = {key: value for key, value in numbers.items() if value is not None}
        row = self._rows[0] if self._rows and name in ("vanishing", "exploding") else None
        if name in ("dead units", "saturated"):
            shares = self._newest("dead_fraction" if name == "dead units" else "saturated_fraction")
            row = max(shares, key=shares.__getitem__, default=None)
            shown["share"] = max(shares.values(), default=1.0)
        rms = self._readings[-1].values.get("grad_rms", [])
        ends = [rms[n] for n in self._rows[:: max(1, len(self._rows) - 1)] if n < len(rms)]
        if len(ends) == 2 and ends[0] is not None and ends[1]:
            shown |= {"first_to_last_grad": ends[0] / ends[1], "last": self._layers[self._rows[-1]].name}
        return None if row is None else self._layers[row].name, shown


def judge(s: Signs, situation: Situation) -> tuple[Name, float]:
    """The gravest first. How sure: ½ at the threshold of the number that decided, more beyond it."""
    known, size = situation.classes is not None, abs(s.guess)
    grown = max(s.first_product or 1.0, s.product or 1.0)
    if s.first > HOT * s.guess and grown > GROWN and s.now > (HOT if s.fall > FALLS else OVER_GUESS) * s.guess:
        return "exploding", _sure(grown / GROWN)
    risen = max(s.first + (RISEN - 1) * abs(s.first), s.guess + (OVER_GUESS - 1) * size)
    if s.now > risen:
        return "diverging", _sure(s.now / risen if risen > 0 else math.inf, decades=0.3)
    falls = s.fall > FALLS and s.now > ABOVE * s.guess if known else s.fall > STANDS
    if s.now > s.guess - (1 - STUCK) * size and not falls:
        return _stuck(s, situation)
    sharpness, _, bears = s.curvature or (0.0, 0.0, None)
    if (s.cosine is not None and s.cosine < BOUNCES) or (bears is not None and sharpness >= 0.95 * bears):
        return "rate at the edge", 0.8
    return "healthy", _sure(STUCK * s.guess / s.now, decades=0.3) if s.now > 0 else 1.0


def _stuck(s: Signs, situation: Situation) -> tuple[Name, float]:
    """What holds a loss that does not fall."""
    adaptive, sigmoid = situation.optimizer in ADAPTIVE, situation.activation == "sigmoid" and s.blocks > 2
    faded = max(FADED, SIGMOID**s.blocks if sigmoid else 0.0)
    if s.product == 0 or s.dead > 0.95:
        return "dead units", 0.95
    if adaptive and s.moved is not None and s.moved < CRAWLS:
        return "rate too small", _sure(CRAWLS / max(s.moved, 1e-9))
    if s.product is not None and s.product < faded:
        return "vanishing", _sure(faded / s.product)
    if s.curvature is not None and s.curvature[1] < -0.01 * abs(s.curvature[0]):
        return "saddle", 0.8
    if not adaptive and s.stride is not None and s.stride < SHORT:
        return "rate too small", _sure(SHORT / max(s.stride, 1e-9))
    if s.first_moved is not None and s.first_moved > HURLS:
        return "diverging", 0.6
    if s.slope < LEAVES and s.growth is not None and s.growth > 0.9:
        return "healthy", 0.6
    if s.dead > DEAD:
        return "dead units", 0.6
    return ("saturated" if s.saturated > SATURATED else "plateau"), 0.6


def advice(name: Name, s: Signs, situation: Situation) -> list[Advice]:
    """What helps in this case, best first, whether or not there is a knob for it yet."""
    adaptive, adam = situation.optimizer in ADAPTIVE, Advice("optimizer", "adam", "o")
    init = Advice("init", "he" if situation.activation in (None, "relu", "leaky_relu") else "xavier", "i")
    redraw = [init] if s.small and situation.activation != "sigmoid" else []
    skip = [] if situation.residual else [Advice("residual", "on", "r")]
    # Instant: one calibrated to leave the function as it is leaves the illness, too.
    norms = ("layer,way=instant", "layer,where=mid,way=instant")
    norm, between = ([Advice("norm", value, "n")][: not situation.norm] for value in norms)
    short = s.moved or 1e-9 if adaptive else (s.stride or 1e-9) * WALKS / LONG
    times = max(1, min(3, math.ceil(math.log10(WALKS / short)))) if name == "rate too small" else 1
    faster = Advice("lr", f"*{10**times}", "]")
    cures: dict[Name, list[Advice]] = {
        "vanishing": [*redraw, *skip, *norm],
        "exploding": [init, *between],
        "diverging": [*SLOWED],
        "dead units": [*(skip if s.blocks >= DEEP else []), Advice("activation", "leaky_relu", "a"), init],
        "saturated": [init, Advice("activation", "relu", "a"), *norm],
        "plateau": [*redraw, *([] if adaptive else [adam]), faster, *skip],
        "saddle": [faster] if adaptive else [adam, faster],
        "rate too small": [faster] if adaptive else [adam, faster],
        "rate at the edge": [Advice("lr", "/1.25", "-")],
    }
    return cures.get(name, [])


def agrees(a: Advice, knob: str, value: str, old: str = "") -> bool:
    """Whether a turn does what was advised; of a rate only the direction counts."""
    if a.knob != knob or knob != "lr":
        return a.knob == knob and a.value.partition(",")[0] == value.partition(",")[0]
    relative, number = value[:1] in ("*", "/"), float(value.lstrip("*/"))
    up = (number > 1) == (value[0] == "*") if relative else bool(old) and number > float(old)
    return up == a.value.startswith("*") and (relative or bool(old))


def values_of(reading: ReadingsTaken, metric: str) -> list[float]:
    """Those of a metric's values that were measured."""
    return [v for v in reading.values.get(metric, ()) if v is not None]


def _unclipped(reading: ReadingsTaken) -> float:
    """How many times larger the gradients were before our clip."""
    before, now = reading.grad_norm_preclip, reading.global_grad_norm
    return 1.0 if before is None or not 0 < now < math.inf else before / now


def _slope(losses: Sequence[float]) -> float:
    """The slope of a straight line through the losses, in its standard errors."""
    n, times = len(losses), range(len(losses))
    slope, start = statistics.linear_regression(times, losses)
    rest = math.fsum((y - start - slope * t) ** 2 for t, y in zip(times, losses, strict=True))
    return slope / max(math.sqrt(rest / (n - 2) / (n * (n * n - 1) / 12)), 1e-300)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _sure(beyond: float, *, decades: float = 1.0) -> float:
    return 1 - 0.5 * math.exp(-max(0.0, math.log10(max(beyond, 1e-300))) / decades)


SAID: dict[Name, str] = {
    **dict.fromkeys(("vanishing", "exploding"), "On its way back the gradient is multiplied by {product:.1e}."),
    "diverged": "The loss is no number since step {step:.0f}.",
    "diverging": "The updates are too large: the loss stands at {loss:.3g}.",
    "dead units": "{share:.0%} of {layer}'s units never answer.",
    "saturated": "{share:.0%} of {layer} is saturated.",
    "plateau": "The loss stands at {loss:.3g} though the gradient arrives.",
    "saddle": "The loss stands at {loss:.3g} on a saddle.",
    "rate too small": "The rate is too small: the loss stands at {loss:.3g}.",
    "rate at the edge": "Every step jumps to the other side of the valley.",
    "healthy": "It trains: the loss stands at {loss:.3g}.",
}


def sentence(finding: Finding) -> str:
    """One line for the screen."""
    said, places = SAID[finding.finding], {"layer": finding.layer or "the net", "last": finding.evidence.get("last")}
    names = {key: ".".join(str(name).split(".")[:2]) for key, name in places.items()}
    if finding.finding == "vanishing" and "first_to_last_grad" in finding.evidence:
        said = "{layer} gets {first_to_last_grad:.1e} of {last}'s gradient."
    text = said.format_map({"product": math.nan} | finding.evidence | names)
    for a in finding.advice[:1]:
        text += f" Try {a.key} {a.knob}" + ("." if a.knob in ("residual", "undo", "norm") else f" {a.value}.")
    return text
