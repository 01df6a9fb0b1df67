"""From signs to a finding. The thresholds were set on nets drawn at random and labelled by trying changes out.

See `tests/diagnosis_nets.py`, its tuning pool, for the nets.
"""

from __future__ import annotations

import math

from tui_descent.telemetry.diagnosis.features import Signs
from tui_descent.telemetry.diagnosis.findings import Name, Situation

HOT = 5.0  # × g at the start: the outputs were far too large
RISEN, OVER_GUESS = 1.5, 1.3
GOOD = 0.65  # × g: a loss that comes below it trains
ENDS = 0.55  # × g: a loss that stands trained if it is below it
STEADY = 0.07  # × g: a loss that falls by as much over three windows is on its way
STUCK = 0.81  # × g: a loss above it has learnt next to nothing
LEARNT = 0.95  # × a guess that is known and whose loss cannot come near 0: a text's
ABOVE, FALLS = 1.1, 0.07  # a loss over 1.1 g that falls by 7 % in a third of a window is on its way
STANDS = 0.02  # where g is not known: a loss that falls by less in a third of a window
NOTHING = 1e-3  # of a surface's first loss
SLOPES = -2.5  # where g is known and no class is: the loss's slope in standard errors
LEAVES = -4.5  # the loss's slope in standard errors: it leaves by itself if the gradient does not shrink meanwhile
FADED, GROWN, BURST = 3e-3, 10.0, 100.0  # P
SIGMOID = 0.3  # a sigmoid's block multiplies by about ¼, whatever its weights
ALL, DEAD, SATURATED = 0.95, 0.9, 0.5  # shares of a layer
CRAWLS, HURLS = 6e-4, 0.05  # ‖Δ‖ over the norm of weights of the size that Xavier draws
SHORT = 0.009  # ‖Δ‖/‖g‖ of plain descent, which is η; η/(1 − β) with momentum
CAME, FAR = 0.1, 0.5  # P of a gradient that comes through; decades by which steps are far too short
BOUNCES, EDGE = -0.8, 0.95  # cosine of one gradient with the next; sharpness over what the rate can bear
ADAPTIVE = ("adam", "adamw", "rmsprop")
SMALL_WEIGHTS = 0.6  # √width · rms of a square weight; Xavier draws it at 1, He at 1.4


def judge(s: Signs, situation: Situation) -> tuple[Name, float] | None:
    """The gravest first. How sure: ½ at the threshold of the number that decided, more beyond it.

    None of a loss that is worse than a guess and comes down: that is neither well yet nor ill any more.
    """
    known, size = situation.classes is not None, abs(s.guess)
    # Where the first updates threw the weights about, what grew since tells of them.
    grown = max(s.first_product or 1.0, 1.0 if _hurled(s) else s.product or 1.0)
    comes = None if s.coming is None or not known else s.coming / s.guess
    on_its_way = s.fall > FALLS if comes is None else comes < GOOD
    if burst(s.first, s.guess, grown) and s.now > (HOT if on_its_way else OVER_GUESS) * s.guess:
        return "exploding", _sure(grown / GROWN)
    risen = max(s.first + (RISEN - 1) * abs(s.first), s.guess + (OVER_GUESS - 1) * size)
    if s.now > risen:
        return "diverging", _sure(s.now / risen if risen > 0 else math.inf, decades=0.3)
    # Whatever a loss that has leapt did before: without any gradient it goes nowhere from here.
    if known and s.product == 0 and s.now > GOOD * s.guess:
        return _died(s)
    if comes is not None:
        # Where the units are saturated a fall is no promise of another.
        # Nor where the steps are far too short.
        halting = s.saturated > SATURATED or _slow(s, situation.optimizer in ADAPTIVE) > FAR
        if comes > (GOOD if s.fallen else ENDS) or (s.now > GOOD * s.guess and halting):
            name, sure = _stuck(s, situation)
            return name, min(sure, _sure(comes / GOOD, decades=0.1))
        return _trains(s, _sure(GOOD * s.guess / max(s.coming or 0.0, s.now + 2 * s.noise, 1e-300), decades=0.1))
    share = STUCK
    if known:
        falls = s.fall > FALLS and s.now > ABOVE * s.guess
    elif situation.guess is not None:
        # Down to the guess a loss falls without a look at the input: that is no sign that the gradient gets through.
        share, falls = LEARNT, s.slope < SLOPES and (s.product is None or s.product > FADED)
    else:
        falls = s.fall > STANDS
    if s.now > s.guess - (1 - share) * size and not falls:
        return _stuck(s, situation)
    if (known or situation.guess is not None) and s.now > OVER_GUESS * s.guess:
        return None
    if situation.surface and s.fell < STANDS * size and _on_a_saddle(s):
        return "saddle", 0.8
    if lies_flat(s, situation):
        return "healthy", 0.5
    return _trains(s, _sure(share * s.guess / s.now, decades=0.3) if s.now > 0 else 1.0)


def burst(first: float, guess: float, product: float | None) -> bool:
    """Whether a run began with outputs far too large and a gradient that grows on its way back."""
    return first > HOT * guess and product is not None and product > GROWN


def lies_flat(s: Signs, situation: Situation) -> bool:
    """Whether a surface's loss stands, at a minimum or on a saddle, and nobody asked for the curvature that can tell.

    One that has become a thousandth of what it was stands even where it is on its way to 0.
    """
    if not situation.surface or s.curvature is not None or (s.cosine is not None and s.cosine < BOUNCES):
        return False
    level = abs(s.now) < NOTHING * abs(s.guess) or (s.fall < STANDS and s.slope > SLOPES)
    return s.fell < STANDS * abs(s.guess) and level


def _trains(s: Signs, sure: float) -> tuple[Name, float]:
    edge = None if s.curvature is None else s.curvature.edge
    if (s.cosine is not None and s.cosine < BOUNCES) or (edge is not None and edge >= EDGE):
        return "rate at the edge", 0.8
    return "healthy", sure


def _on_a_saddle(s: Signs) -> bool:
    return s.curvature is not None and s.curvature.lambda_min < -0.01 * abs(s.curvature.lambda_max)


def _stuck(s: Signs, situation: Situation) -> tuple[Name, float]:
    """What holds a loss that does not fall."""
    adaptive, sigmoid = situation.optimizer in ADAPTIVE, situation.activation == "sigmoid" and s.blocks > 2
    faded = max(FADED, SIGMOID**s.blocks if sigmoid else 0.0)
    if s.product == 0 or s.dead > ALL:
        return _died(s)
    lost = _decades(faded / s.product) if s.product else 0.0
    slow = _slow(s, adaptive)
    # Both at once: what is further out. A product is one of many factors: a quarter of its decades count.
    if slow > max(0.0, lost / 4) and (adaptive or lost > 0):
        return "rate too small", _sure(10**slow)
    if lost > 0 and s.saturated > SATURATED and CAME < (s.first_product or 0.0) < GROWN:
        return "diverging", 0.6  # it came through at first: the updates have driven the units to where they saturate
    if lost > 0:
        return "vanishing", _sure(10**lost)
    if s.saturated > SATURATED and (s.first_product or 0.0) > BURST:
        return "exploding", 0.6
    if _on_a_saddle(s):
        # A gradient that grows on its way back makes curvatures of both signs large.
        return ("exploding", 0.6) if (s.product or 0.0) > BURST else ("saddle", 0.8)
    if slow > 0:
        return "rate too small", _sure(10**slow)
    if _hurled(s):
        return "diverging", 0.6
    leaves = s.slope < LEAVES and s.growth is not None and s.growth > 0.9
    steady = situation.classes is not None and (s.fallen or 0.0) > STEADY * s.guess
    if s.saturated <= SATURATED and (leaves or steady):
        return "healthy", 0.6
    if s.dead > DEAD:
        return "dead units", 0.6
    return ("saturated" if s.saturated > SATURATED else "plateau"), 0.6


def _slow(s: Signs, adaptive: bool) -> float:
    """By how many decades the steps are too short; 0 where they are not or it is not known."""
    size, least = (s.moved, CRAWLS) if adaptive else (s.stride, SHORT)
    return 0.0 if size is None or _hurled(s) else max(0.0, _decades(least / max(size, 1e-9)))


def _hurled(s: Signs) -> bool:
    """Whether the first updates threw the weights about."""
    return s.first_moved is not None and s.first_moved > HURLS


def _died(s: Signs) -> tuple[Name, float]:
    """No gradient at all: dead from the start, by weights too small, or killed under way."""
    began = s.first_product
    if s.first_dead is not None and s.first_dead > ALL:
        return "dead units", 0.95
    if began is not None and began > BURST:
        return "exploding", 0.7
    if began is not None and began > FADED:
        return "diverging", 0.7
    # With a skip around it a dead layer keeps no gradient back.
    through = s.product is not None and s.product > FADED
    if began is not None and began > 0 and not through and (_hurled(s) or s.scale < SMALL_WEIGHTS):
        return "vanishing", 0.7 if _hurled(s) else 0.9
    return "dead units", 0.95


def _sure(beyond: float, *, decades: float = 1.0) -> float:
    return 1 - 0.5 * math.exp(-max(0.0, _decades(beyond)) / decades)


def _decades(ratio: float) -> float:
    """log10, between -300 and 300: gradients that overflow are infinite, and of those that fade little is left."""
    return math.log10(min(max(ratio, 1e-300), 1e300))
