"""Turns features into a finding: thresholds that are tried in order, and the findings that they lead to.

The thresholds were set on randomly drawn nets, labelled by trying out which changes help: the tuning pool of
`tests/helpers/diagnosis_nets.py`. Below, g is the loss of a guess and P the product of the blocks' backprop factors.
"""

from __future__ import annotations

import math

from tui_descent.telemetry.diagnosis.features import SIGNIFICANT, SPOILS, THIRD, WINDOW, Features
from tui_descent.telemetry.diagnosis.findings import Name
from tui_descent.telemetry.diagnosis.situation import RunContext

CLEAR = 0.6  # a judgement that is less sure is shown as "not clear"
FAIR = 0.7  # how sure a judgement is that depends on one yes-or-no condition
ENOUGH_READINGS = 7  # with fewer readings, a judgement is less sure

# The loss, in units of g.
HUGE = 5.0  # a first loss above this: the outputs were far too large
RISEN, ABOVE_GUESS = 1.5, 1.3
BLOWN_UP = 10.0  # of the first loss, too
RISEN_AGAIN = 3.0  # of the lowest loss: no longer healthy, unless it is low
EXPECTED_GOOD = 0.65  # an expected loss below it: the run trains
EXPECTED_GOOD_FLAT = 0.55  # the same for a loss that does not fall any more
STUCK = 0.81  # a loss above this: almost nothing was learnt
STUCK_TEXT = 0.95  # the same for text, whose loss cannot come close to 0
STEADY_FALL = 0.07  # a larger fall over three windows: the loss is still improving
SLOW_FALL = 0.05  # over three windows: small steps bring the loss down
CLEAR_FALL = 0.2  # over three windows: the loss clearly falls
NOT_FALLEN = 0.9  # above this share of the run's first loss, the loss has not fallen
ABOVE, FALLING = 1.1, 0.07  # a loss above 1.1 that falls by 7 % in a third of a window is still improving
TINY_OF_FIRST = 0.01  # of the run's first loss: then it has fallen far, even if the loss function is not known
TINY = 0.02  # below this loss nothing is left to learn
FALLEN = 0.15  # below this share of the run's first loss, or of g if g is lower, the loss has fallen far
LEVEL_SLOPE = -2.5  # the loss is level if a line through three windows has a slope above this, in standard errors

FLAT = 0.02  # where g is not known: a loss that falls by less in a third of a window is stuck
VANISHED_LOSS = 1e-3  # of a surface's first loss
SLOW, KEPT = 1.5e-3, 0.8  # of a surface: ‖Δ‖/‖w‖, and the gradient over that of 60 steps ago, if its point crawls
FALLING_SLOPE = -2.5  # the loss's slope in standard errors, where g is known but there are no classes
ESCAPING_SLOPE = -4.5  # the loss escapes by itself
VANISHED, GROWN, EXPLODED = 3e-3, 10.0, 100.0  # P
NOTHING_ARRIVES = 1e-6  # with P below this, no gradient arrives, even if the loss falls
SIGMOID_FACTOR = 0.3  # a sigmoid block multiplies the gradient by about ¼ at most, for any weights
ALL_DEAD, MANY_DEAD, SATURATED = 0.95, 0.9, 0.5  # shares of a layer's units
SMALL_UPDATE, LARGE_UPDATE = 6e-4, 0.05  # ‖Δ‖ over the norm of weights as large as Xavier's
ABOVE_BEST = 1.2  # of the run's best loss: what large updates have lost again
NEVER_ARRIVED = 1e-5  # P of the first readings: too small to be the work of one update
RATE_CUT = 1e-3  # of the largest rate: a schedule has ended the training
SMALL_STEP = 0.009  # ‖Δ‖/‖g‖ of SGD: η, or η/(1 − β) with momentum
NO_RATE_HELPS = 3.0  # decades by which the gradient has vanished
PASSED, FAR_TOO_SMALL = 0.1, 0.5  # P of a gradient that arrives; decades by which steps are far too small
EDGE, BOUNCING = 0.95, -0.8  # sharpness over the stability limit; cosine of one gradient with the next
SMALL_WEIGHTS = 0.6  # √width · rms of a square weight: Xavier's is 1, He's 1.4
LARGE_WEIGHTS = 2.0  # the same: they saturate units, and without limits the outputs would explode
DECAYED, DECAYING = 0.5, 0.97  # weight norm over that at the run's start, and at the window's start
SHRUNK = 0.7  # the same, where decay outweighs the gradient
DECAY_RULES, DECAY_TIMES = 0.5, 1.0  # the decay's part of a step over the gradient's; time constants it has acted for
# A momentum from which on its average may be too long, and how many times as long as half of the steps so far it is.
LARGE_MOMENTUM, LONG_AVERAGE = 0.99, 0.5
# Over the last half of the window: a loss that surely falls by less is level, by more is not.
LEVEL_FALL, STILL_FALLS = 0.05, 0.02


def apply_rules(f: Features, context: RunContext) -> tuple[Name, float] | None:
    """The most serious finding and how sure it is: ½ at the threshold of the number that decided, more beyond it.

    None while the loss is above that of a guess but falls: this is not healthy yet, but no longer a fault.
    """
    if not context.loss_means_fit or (f.now < -1e-6 * abs(f.guess) and not context.surface):
        return _by_gradients(f, context)
    judged = _by_loss(f, context)
    if judged is not None and judged[0] in ("not clear", "plateau", "diverging") and _momentum_is_too_large(f, context):
        return "large momentum", 0.8
    if judged is not None and judged[0] in ("healthy", "converged", "plateau") and _only_scatters(f, context):
        return "not clear", 0.5
    return judged


def _only_scatters(f: Features, context: RunContext) -> bool:
    """Whether a loss scatters so much that nothing shows where it goes, and no guess is known to compare it with."""
    known = context.classes is not None or context.guess is not None or context.surface
    return not f.moved and not known


def _momentum_is_too_large(f: Features, context: RunContext) -> bool:
    """Whether the loss is that of a guess, or far above its best, and the optimizer averages the gradients over most of
    the run, so that it still follows gradients of long ago.
    """
    momentum = context.momentum
    if momentum is None or not LARGE_MOMENTUM <= momentum < 1 or 1 / (1 - momentum) < LONG_AVERAGE * f.steps:
        return False
    at_guess = context.classes is not None and f.now > NOT_FALLEN * max(f.guess, f.run_first)
    return at_guess or rose_again(f)


def _by_gradients(f: Features, context: RunContext) -> tuple[Name, float]:
    """What the gradients alone prove."""
    if _no_weight_learns(f):
        return ("rate too large", 0.9) if _spoilt_at_once(f) else ("dead units", 0.95)
    if f.product is not None and 0 < f.product < NOTHING_ARRIVES and f.first_product is not None:
        return "vanishing", _sure(NOTHING_ARRIVES / f.product)
    if not context.several_optimizers and 0 < f.now < TINY_OF_FIRST * f.run_first:
        return _training(f, context, FAIR)  # whatever the loss function is, such a fall is no accident
    return "not clear", 0.5


def _by_loss(f: Features, context: RunContext) -> tuple[Name, float] | None:
    classes, size = context.classes is not None, abs(f.guess)
    # If the first updates were too large, they are the reason why the product has grown since.
    grown = max(f.first_product or 1.0, 1.0 if _started_too_fast(f) else f.product or 1.0)
    expected = None if f.expected is None or not classes else f.expected / f.guess
    improving = f.fall > FALLING if expected is None else expected < EXPECTED_GOOD
    if _saturated_from_the_start(f, context) and f.now > NOT_FALLEN * f.guess and not improving:
        return "saturated", 0.8
    if (
        not _saturated_from_the_start(f, context)
        and exploded(f.first, f.guess, grown)
        and f.now > (HUGE if improving else ABOVE_GUESS) * f.guess
    ):
        return "exploding", _sure(grown / GROWN)
    risen = max(f.first + (RISEN - 1) * abs(f.first), f.guess + (ABOVE_GUESS - 1) * size)
    if f.now > risen and f.left_start:
        return "diverging", _sure(f.now / risen if risen > 0 else math.inf, decades=0.3)
    if _no_weight_learns(f) and not context.surface and f.now > TINY * size:
        return _no_gradient(f, context)
    known = classes or context.guess is not None or context.surface
    if not known and grown > EXPLODED and f.now > FALLEN * f.run_first:
        return "exploding", _sure(grown / EXPLODED)
    if f.saturated > SATURATED and _started_too_fast(f) and expected is None:
        if _spoilt_at_once(f) and f.now > NOT_FALLEN * min(f.guess, f.run_first):
            return _too_large(f)
        return "not clear", 0.5  # a low loss may be luck
    # Without any gradient the loss cannot change any more.
    if classes and f.product == 0 and f.now > EXPECTED_GOOD * f.guess:
        return _no_gradient(f, context)
    if expected is not None:
        return _by_expected_loss(f, context, expected)
    return _by_guess(f, context)


def _by_expected_loss(f: Features, context: RunContext, expected: float) -> tuple[Name, float]:
    """The finding for a cross-entropy of classes. `expected` is the loss that its trend promises, over g."""
    # With saturated units, or with steps that are far too small, a fall does not promise further falls.
    halting = f.saturated > SATURATED or _too_small(f, context) > FAR_TOO_SMALL
    good = EXPECTED_GOOD if f.long_fall else EXPECTED_GOOD_FLAT
    if expected > good or (f.now > EXPECTED_GOOD * f.guess and halting):
        name, sure = _stuck(f, context)
        if name == "weights decaying":
            return name, sure  # the decay shows that the loss will not fall
        return name, min(sure, _sure(expected / EXPECTED_GOOD, decades=0.1))
    level = max(f.expected or 0.0, f.now + 2 * f.noise, 1e-300)
    sure = _sure(EXPECTED_GOOD * f.guess / level, decades=0.1)
    if f.now > EXPECTED_GOOD * f.guess and f.fall < FLAT and f.slope > FALLING_SLOPE:
        return "not clear", 0.5  # the loss fell a while ago, and has been level since
    clearly = (f.long_fall or 0.0) > CLEAR_FALL * f.guess
    return _training(f, context, max(sure, FAIR) if clearly else sure)


def _by_guess(f: Features, context: RunContext) -> tuple[Name, float] | None:
    """The finding where only the loss of a guess is known, or not even that."""
    classes, size = context.classes is not None, abs(f.guess)
    share = STUCK
    if classes:
        falls = f.fall > FALLING and f.now > ABOVE * f.guess
    elif context.guess is not None:
        # A net can fall to the loss of a guess without using its input, so such a fall does not show that the gradient
        # arrives.
        share, falls = STUCK_TEXT, f.slope < FALLING_SLOPE and (f.product is None or f.product > VANISHED)
    else:
        falls = f.fall > FLAT or f.slope < FALLING_SLOPE  # a slow but certain fall, as during a warm-up
    if f.now > f.guess - (1 - share) * size and not falls:
        return _stuck(f, context)
    if (classes or context.guess is not None) and f.now > ABOVE_GUESS * f.guess:
        return None
    if context.surface and f.fell < FLAT * size and _on_a_saddle(f):
        return "saddle", 0.8
    if flat_surface(f, context) or (context.surface and crawls(f)):
        return "not clear", 0.5
    if (
        not falls
        and f.slope > ESCAPING_SLOPE
        and f.now > NOT_FALLEN * f.run_first
        and f.now > TINY * size
        and not context.surface
    ):
        return "not clear", 0.5  # the loss began low, and has not fallen since
    return _training(f, context, _sure(share * f.guess / f.now, decades=0.3) if f.now > 0 else 1.0)


def exploded(first_loss: float, guess: float, product: float | None) -> bool:
    """Whether a run started with outputs that are far too large and a gradient that grows on its way back."""
    return first_loss > HUGE * guess and product is not None and product > GROWN


def flat_surface(f: Features, context: RunContext) -> bool:
    """Whether a surface's loss is flat, as at a minimum or a saddle, and the curvature, which could tell the two apart,
    is not known.

    A loss that is a thousandth of the first one counts as flat even while it approaches 0.
    """
    if not context.surface or f.curvature is not None or (f.cosine is not None and f.cosine < BOUNCING):
        return False
    level = abs(f.now) < VANISHED_LOSS * abs(f.guess) or (f.fall < FLAT and f.slope > FALLING_SLOPE)
    return f.fell < FLAT * abs(f.guess) and level


def crawls(f: Features) -> bool:
    """Whether the point of a surface hardly moves, and its gradient hardly changes, as it would close to a minimum.

    The loss alone does not show this: no level of it is known to be low. What is left to fall must not be negligible:
    near a minimum the gradient shrinks by a constant factor, and what is left of the loss by its square.
    """
    if f.movement is None or f.movement > SLOW or f.gradient_kept is None or f.gradient_kept < KEPT:
        return False
    left = math.inf if f.gradient_kept >= 1 else f.fell * (WINDOW / THIRD) / (-2 * math.log(f.gradient_kept))
    return left > VANISHED_LOSS * abs(f.guess)


def _training(f: Features, context: RunContext, sure: float) -> tuple[Name, float]:
    edge = None if f.curvature is None else f.curvature.edge
    if edge is not None and edge >= EDGE:
        return "rate at the edge", 0.8
    if rises(f) and not context.surface:
        return "not clear", 0.5
    level = f.slope > FALLING_SLOPE and f.fall < FLAT if f.long_slope is None else f.long_slope > LEVEL_SLOPE
    level = level and (f.last_half is None or f.last_half[0] < STILL_FALLS)
    tiny = context.classes is not None and f.now < TINY * f.guess
    low = tiny or f.now < FALLEN * min(f.run_first, f.guess)
    if not low and f.now > RISEN_AGAIN * f.lowest > 0 and not context.surface:
        return "not clear", 0.5
    if not low and _decay_rules(f, context) and (level or (f.kept_recently or 1.0) < DECAYING):
        return "weights decaying", 0.8
    fell = f.long_fell or 0.0
    if f.long_slope is not None and f.long_slope < -2 * SIGNIFICANT and fell > SLOW_FALL * abs(f.guess):
        sure = max(sure, FAIR)  # at any value, the loss clearly falls
    if context.surface or not level:
        return "healthy", sure
    # The newest losses are level. If they are tiny, or if they are low and so is the whole stretch, they are at their
    # floor. Otherwise nothing shows whether the loss could fall further.
    if not low:
        return "not clear", 0.5
    if tiny or (f.last_half is not None and f.last_half[1] < LEVEL_FALL):
        return "converged", max(sure, FAIR)
    return ("healthy", max(sure, FAIR)) if f.now < NOT_FALLEN * f.run_first else ("not clear", 0.5)


def rose_again(f: Features) -> bool:
    """Whether the loss is far above its lowest mean, and not only by a few odd batches."""
    return f.now > RISEN_AGAIN * f.lowest > 0 and f.low > f.lowest


def rises(f: Features) -> bool:
    """Whether the loss clearly rises over the long window, at whatever value."""
    if f.long_slope is None or f.long_fell is None:
        return False
    return f.long_slope > 2 * SIGNIFICANT and -f.long_fell > LEVEL_FALL * abs(f.now)


def _on_a_saddle(f: Features) -> bool:
    return f.curvature is not None and f.curvature.lambda_min < -0.01 * abs(f.curvature.lambda_max)


def _stuck(f: Features, context: RunContext) -> tuple[Name, float]:
    """Why a loss does not fall."""
    if rate_was_cut(f):
        return "rate too small", 0.9
    if f.now > RISEN_AGAIN * f.lowest_since > 0 and f.lowest_since < NOT_FALLEN * f.guess and not context.surface:
        return "not clear", 0.5  # the loss was far lower: it swings
    adaptive, sigmoid = context.adaptive, context.activation == "sigmoid" and f.blocks > 2
    vanished = max(VANISHED, SIGMOID_FACTOR**f.blocks if sigmoid else 0.0)
    decays = context.weight_decay is not None and context.weight_decay > 0
    shrinks = (f.kept or 1.0) < DECAYED and (f.kept_recently or 1.0) < DECAYING
    # A far too large rate makes a usual decay of AdamW large, too.
    if (decays and shrinks) or (_decay_rules(f, context) and not (adaptive and too_large(f))):
        return "weights decaying", 0.8
    if _saturated_from_the_start(f, context):
        return "saturated", 0.8
    if too_large(f):
        return _too_large(f)
    if f.product == 0 or f.dead > ALL_DEAD:
        return _no_gradient(f, context)
    if f.product is None and f.silent_row is not None:
        return "dead units", 0.9
    lost = _decades(vanished / f.product) if f.product else 0.0
    too_small = _too_small(f, context)
    if lost > 0 and adaptive and (f.first_update_ratio or 0.0) > SMALL_UPDATE:
        too_small = 0.0  # the same rate made usual steps at first: they shrank with the gradient
    # If both the gradient and the steps are too small, the finding is the one further beyond its threshold. P has many
    # factors, so only a quarter of its decades counts.
    if too_small > max(0.0, lost / 4) and lost < NO_RATE_HELPS and (adaptive or lost > 0):
        return _slow(f, too_small)
    if lost > 0 and f.saturated > SATURATED and PASSED < (f.first_product or 0.0) < GROWN:
        return "rate too large", FAIR  # the gradient arrived at first; then the updates saturated the units
    if lost > 0:
        return "vanishing", _sure(10**lost)
    if f.saturated > SATURATED and (f.first_product or 0.0) > EXPLODED:
        return "exploding", FAIR
    if _on_a_saddle(f):
        # A gradient that grows on its way back gives large curvatures of both signs.
        return ("exploding", FAIR) if (f.product or 0.0) > EXPLODED else ("saddle", 0.8)
    if too_small > 0:
        return _slow(f, too_small)
    escaping = f.slope < ESCAPING_SLOPE
    steady = context.classes is not None and f.fall > 0 and (f.long_fall or 0.0) > STEADY_FALL * f.guess
    if f.saturated <= SATURATED and (escaping or steady):
        # The loss begins to fall. Before it has fallen by a tenth, "training well" would be too much said.
        fell = f.now < NOT_FALLEN * min(f.guess, f.run_first) and not f.now > RISEN_AGAIN * f.lowest > 0
        return ("healthy", FAIR) if fell else ("not clear", 0.5)
    if f.dead > MANY_DEAD:
        return "dead units", FAIR
    if context.surface and f.cosine is not None and f.cosine < BOUNCING:
        return "rate too large", FAIR  # the point jumps from wall to wall
    return ("saturated" if f.saturated > SATURATED else "plateau"), FAIR


def rate_was_cut(f: Features) -> bool:
    """Whether a schedule has made the learning rate tiny."""
    return f.rate_left is not None and f.rate_left < RATE_CUT


def _slow(f: Features, too_small: float) -> tuple[Name, float]:
    """Report steps that are too small, unless the loss falls in spite of them."""
    if f.long_fell is not None and f.long_fell > SLOW_FALL * abs(f.guess):
        return "not clear", 0.5
    return "rate too small", _sure(10**too_small)


def _too_small(f: Features, context: RunContext) -> float:
    """By how many decades the steps are too small; 0 if they are large enough, or if this is not known."""
    measures = [(f.update_ratio, SMALL_UPDATE)] if context.adaptive is not False else []
    if not context.adaptive:  # for an unknown optimizer, as in a user loop, both must be too small
        measures.append((f.step_per_grad, SMALL_STEP))
    if _started_too_fast(f) or any(size is None for size, _ in measures):
        return 0.0
    return max(0.0, min(_decades(least / max(size, 1e-9)) for size, least in measures if size is not None))


def _started_too_fast(f: Features) -> bool:
    """Whether the first updates changed the weights by far too much."""
    return f.first_update_ratio is not None and f.first_update_ratio > LARGE_UPDATE


def too_large(f: Features) -> bool:
    """Whether updates were so large that a stuck loss is their doing: the gradient may be lost since then."""
    if (f.first_dead or 0.0) > ALL_DEAD or (f.early_product is not None and f.early_product < NEVER_ARRIVED):
        return False  # it was so before
    rose = f.peak > max(f.first + (RISEN - 1) * abs(f.first), f.guess + (ABOVE_GUESS - 1) * abs(f.guess))
    above_best = f.now - f.best > (ABOVE_BEST - 1) * abs(f.best) + 0.6 * f.noise  # of the mean of ten: two errors
    return _spoilt_at_once(f) or ((f.largest_update or 0.0) > LARGE_UPDATE and (rose or above_best))


def spoilt(f: Features) -> bool:
    """Whether the weights are so far off that a smaller rate alone does not repair them."""
    lost = f.product is not None and f.product < VANISHED
    return lost or f.no_gradient or f.no_weight_gradient or f.dead > ALL_DEAD or f.saturated > SATURATED or blown_up(f)


def blown_up(f: Features) -> bool:
    """Whether the loss is many times its first value and that of a guess."""
    return f.now > BLOWN_UP * max(abs(f.first), abs(f.guess))


def _too_large(f: Features) -> tuple[Name, float]:
    return "rate too large", _sure((f.largest_update or 0.0) / LARGE_UPDATE, decades=0.7)


def _spoilt_at_once(f: Features) -> bool:
    """Whether one update changed the weights beyond recognition."""
    return (f.largest_update or 0.0) > SPOILS


def _saturated_from_the_start(f: Features, context: RunContext) -> bool:
    """Whether units were saturated before an update could do that, and still are; not with far too small updates."""
    arrived = PASSED < (f.first_product or 0.0) < GROWN and f.product is not None and f.product < VANISHED
    units = (f.first_saturated or 0.0) > SATURATED and f.saturated > SATURATED and not arrived
    # Updates of weights that are too large are small beside them, without being too small.
    too_small = _too_small(f, context) - _decades(max(1.0, f.weight_size or 1.0))
    return units and (f.first_update_ratio or 0.0) < SPOILS and too_small < FAR_TOO_SMALL


def _decay_rules(f: Features, context: RunContext) -> bool:
    """Whether weight decay decides where the weights go, not the gradient.

    Its part of a step is large, and it has acted for long enough. Adam scales a decay that is added to the gradient
    like the gradient, so there the weights themselves must have shrunk.
    """
    if (f.decay_share or 0.0) < DECAY_RULES:
        return False
    if context.adaptive and not context.decoupled:
        return (f.kept or 1.0) < SHRUNK
    return (f.decayed_for or 0.0) > DECAY_TIMES


def _no_weight_learns(f: Features) -> bool:
    """Whether the gradient of every weight is exactly 0, but not because weight decay has shrunk the weights to
    nothing.
    """
    return f.no_gradient or (f.no_weight_gradient and (f.kept or 1.0) > DECAYED)


def _no_gradient(f: Features, context: RunContext) -> tuple[Name, float]:
    """Why there is no gradient: units dead from the start, units killed by updates, or weights too small."""
    if _saturated_from_the_start(f, context):
        return "saturated", 0.9
    if too_large(f):
        return _too_large(f)
    first = f.first_product
    if f.first_dead is not None and f.first_dead > ALL_DEAD:
        return "dead units", 0.95
    if first is not None and first > EXPLODED:
        return "exploding", 0.7
    # Around a dead layer the gradient can still pass through a residual connection.
    arrives = f.product is not None and f.product > VANISHED
    weak = f.product is not None and (_started_too_fast(f) or f.weight_scale < SMALL_WEIGHTS)
    if first is not None and first > 0 and not arrives and weak:
        return "vanishing", 0.7 if _started_too_fast(f) else 0.9
    return "dead units", 0.95


def _sure(ratio: float, *, decades: float = 1.0) -> float:
    """How sure a judgement is: ½ at a ratio of 1 to the threshold. Each `decades` beyond it divide the remaining doubt
    by e.
    """
    return 1 - 0.5 * math.exp(-max(0.0, _decades(ratio)) / decades)


def _decades(ratio: float) -> float:
    """log10, limited to ±300: gradients can overflow or underflow."""
    return math.log10(min(max(ratio, 1e-300), 1e300))
