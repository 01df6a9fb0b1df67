"""Which knobs help against a finding, the best first, and whether an intervention follows the advice.

The order comes from trying the knobs on randomly drawn nets (`tests/helpers/diagnosis_oracle.py`). A change is advised
only if the run would accept it and it is not already in effect.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis.features import Features
from tui_descent.telemetry.diagnosis.rules import LARGE_UPDATE, LARGE_WEIGHTS, SMALL_WEIGHTS, rate_was_cut, spoilt
from tui_descent.telemetry.diagnosis.situation import RunContext

# Good step sizes: ‖Δ‖ divided by the norm of weights as large as Xavier's, and ‖Δ‖/‖g‖.
GOOD_UPDATE_RATIO, GOOD_STEP_PER_GRAD = 3e-3, 0.3
TINY_WEIGHTS = 0.3  # on the scale of SMALL_WEIGHTS: below it, re-initialising helps more than residual connections
DEEP_BLOCKS = 6  # from this depth on, residual connections help more than another optimizer
BYPASS_BLOCKS = 3  # from this depth on, residual connections bypass dead and saturated layers
GREW = 3.0  # a product at the start above this is a sign of weights that are too large

UNDO = Advice("undo", "1", "u")
SLOWER = (UNDO, Advice("lr", "/10", "["))
ADAM = Advice("optimizer", "adam", "o")
RESIDUAL = Advice("residual", "on", "r")
NO_DECAY = Advice("weight_decay", "0", "w")
CONSTANT = Advice("schedule", "constant", "s")
UNBOUNDED = Advice("activation", "relu", "a")
USUAL_UPDATE = 1e-3  # ‖Δ‖/‖W‖
BOUNDED = ("sigmoid", "tanh")


def advice_for(name: str, f: Features, context: RunContext) -> list[Advice]:
    """What helps in this case, the best first. The knobs may be unavailable in this run."""
    adaptive = bool(context.adaptive)
    init = _init(context)
    # A sigmoid's derivative is at most ¼ for any weights, so re-initialising them does not help.
    redraw = [init] if f.weight_scale < SMALL_WEIGHTS and context.activation != "sigmoid" else []
    residual = [] if context.residual else [RESIDUAL]
    norm = _norm(context)
    adam = [] if adaptive else [ADAM]
    faster = Advice("lr", f"*{10 ** _decades(name, f, adaptive)}", "]")
    if name == "rate too small" and rate_was_cut(f):
        return [CONSTANT]
    # In a script, a loss that is stuck in spite of usual updates is rather a matter of data, labels or loss function.
    usual = context.user_loop and (f.update_ratio or 0.0) > USUAL_UPDATE
    large = (f.largest_update or 0.0) > LARGE_UPDATE  # as with Adam in wide nets
    bypass = residual if f.blocks >= BYPASS_BLOCKS else []
    grew, large_weights = (f.first_product or 0.0) > GREW, (f.weight_size or 0.0) > LARGE_WEIGHTS
    deep = f.blocks >= DEEP_BLOCKS
    # A sigmoid's factor of at most ¼ stays where a block cannot have a residual connection.
    first = [UNBOUNDED] if context.partly_residual and context.activation == "sigmoid" else []
    cures: dict[str, list[Advice]] = {
        "vanishing": [
            *first,
            *(redraw + residual if f.weight_scale < TINY_WEIGHTS else residual + redraw),
            *norm,
            *([UNBOUNDED] if context.activation in BOUNDED and not first else []),
        ],
        "exploding": exploding_advice(context),
        "diverging": [*SLOWER],
        # A redraw, because a smaller rate alone does not repair weights that updates have spoilt.
        "rate too large": [*SLOWER, *([init] if spoilt(f) else [])],
        "large momentum": [_less_momentum(context)],
        "dead units": [*bypass, Advice("activation", "leaky_relu", "a"), init],
        "saturated": [
            *([init] if grew or large_weights else [*bypass, init]),
            # Without limits, outputs of large weights explode.
            *(norm if large_weights else [*(bypass if grew else []), UNBOUNDED, *norm]),
        ],
        "weights decaying": [NO_DECAY],
        "plateau": [
            *redraw,
            *(residual if deep else []),
            *adam,
            *([] if large or usual else [faster]),
            *([] if deep or usual else residual),
        ],
        "saddle": [faster, *adam],
        # Another optimizer is not advised here: its learning rate is converted from the current one, so it would be too
        # small.
        "rate too small": [faster],
        "rate at the edge": [Advice("lr", "/1.25", "-")],
    }
    return cures.get(name, [])


def _less_momentum(context: RunContext) -> Advice:
    second = context.values.get("betas", "").partition("/")[2]
    return Advice("betas", f"0.9/{second}", "o") if second else Advice("momentum", "0.9", "o")


def exploding_advice(context: RunContext) -> list[Advice]:
    """What helps against weights that are too large."""
    return [*_norm(context, where="mid"), _init(context)]


def usable(
    advice: list[Advice], context: RunContext, available: Collection[str], *, first: tuple[Advice, ...] = ()
) -> tuple[Advice, ...]:
    """The advice that the run would accept and that is not already in effect, after the remedies in `first`.

    In a user loop new weights are never advised: they would throw away what the weights have learnt, perhaps in an
    earlier run.
    """
    both = [*first, *(a for a in advice if a.knob not in {one.knob for one in first})]
    found = [a for a in both if a.knob in available and not _is_so(a, context)]
    if context.user_loop:
        found = [a for a in found if a.knob != "init"]
    return tuple(found)


def _is_so(advice: Advice, context: RunContext) -> bool:
    value, now = advice.value.partition(",")[0], context.values.get(advice.knob)
    if advice.knob == "init":
        return False  # the weights have changed since they were drawn
    place = advice.value.partition("where=")[2].partition(",")[0]
    if advice.knob == "norm" and place and context.norm_where not in ("", place):
        return False  # a norm layer, but in another place
    known = {"optimizer": context.optimizer, "activation": context.activation}
    return value in (now, known.get(advice.knob))


def _norm(context: RunContext, *, where: str = "") -> list[Advice]:
    # `way=instant`, because a calibrated norm would keep the function unchanged, and with it the problem.
    place = where and f",where={where}"
    return [] if context.norm else [Advice("norm", f"layer{place},way=instant", "n")]


def _init(context: RunContext) -> Advice:
    """Xavier for units that saturate, He for all others."""
    return Advice("init", "xavier" if context.activation in BOUNDED else "he", "i")


def _decades(name: str, f: Features, adaptive: bool) -> int:
    """By how many powers of ten the learning rate should grow."""
    if name != "rate too small":
        return 1
    if adaptive:
        size = f.update_ratio
    else:
        size = None if f.step_per_grad is None else f.step_per_grad * GOOD_UPDATE_RATIO / GOOD_STEP_PER_GRAD
    # A step size that is NaN or was not measured sets no limit.
    size = min(size, 1.0) if size is not None and size > 1e-9 else 1e-9
    return max(1, min(3, math.ceil(math.log10(GOOD_UPDATE_RATIO / size))))


def is_advised(advice: Advice, knob: str, value: str, old: str = "") -> bool:
    """Whether an intervention does what was advised. For a learning rate only the direction counts."""
    if advice.knob != knob or knob != "lr":
        return advice.knob == knob and advice.value.partition(",")[0] == value.partition(",")[0]
    relative, number = value[:1] in ("*", "/"), float(value.lstrip("*/"))
    up = (number > 1) == (value[0] == "*") if relative else bool(old) and number > float(old)
    return up == advice.value.startswith("*") and (relative or bool(old))
