"""Which knobs help against a finding, best first, and whether a turn does what was advised.

The order comes from trying the knobs out on drawn nets (`tests/diagnosis_oracle.py`).
"""

from __future__ import annotations

import math

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis.features import Signs
from tui_descent.telemetry.diagnosis.findings import Name, Situation
from tui_descent.telemetry.diagnosis.rules import ADAPTIVE, SMALL_WEIGHTS

WALKS, STRIDES = 3e-3, 0.3  # a good ‖Δ‖ over the norm of weights of the size that Xavier draws; a good ‖Δ‖/‖g‖
TINY_WEIGHTS = 0.3  # as SMALL_WEIGHTS: so small that drawing them anew helps before a skip does
DEEP = 6  # blocks, from which on another optimizer finds no way through that a skip would not
GREW = 3.0  # a gradient that grew so on its way back at first tells of weights drawn too large
OPENS = 3  # blocks, from which on a skip gets around dead and saturated layers

SLOWED = (Advice("undo", "1", "u"), Advice("lr", "/10", "["))
ADAM = Advice("optimizer", "adam", "o")
SKIP = Advice("residual", "on", "r")


def advice(name: Name, s: Signs, situation: Situation) -> list[Advice]:
    """What helps in this case, best first, whether or not there is a knob for it yet."""
    adaptive = situation.optimizer in ADAPTIVE
    init = _init(situation)
    # A sigmoid's slope is at most ¼ whatever its weights: drawing them anew does not help.
    redraw = [init] if s.scale < SMALL_WEIGHTS and situation.activation != "sigmoid" else []
    skip = [] if situation.residual else [SKIP]
    norm = _norm(situation)
    adam = [] if adaptive else [ADAM]
    faster = Advice("lr", f"*{10 ** _decades(name, s, adaptive)}", "]")
    drawn = [*redraw, *skip] if s.scale < TINY_WEIGHTS else [*skip, *redraw]
    around = skip if s.blocks >= OPENS else []
    cures: dict[Name, list[Advice]] = {
        "vanishing": [*drawn, *norm],
        "exploding": burst_advice(situation),
        "diverging": [*SLOWED],
        "dead units": [*around, Advice("activation", "leaky_relu", "a"), init],
        "saturated": [
            *([init, *around] if (s.first_product or 0.0) > GREW else [*around, init]),
            Advice("activation", "relu", "a"),
            *norm,
        ],
        "plateau": [*redraw, *(skip if s.blocks >= DEEP else []), *adam, faster, *(skip if s.blocks < DEEP else [])],
        "saddle": [faster, *adam],
        # The rate is carried over to another optimizer, so that a rate too small stays one.
        "rate too small": [faster],
        "rate at the edge": [Advice("lr", "/1.25", "-")],
    }
    return cures.get(name, [])


def burst_advice(situation: Situation) -> list[Advice]:
    """Against weights that are drawn too large."""
    return [*_norm(situation, "mid"), _init(situation)]


def _norm(situation: Situation, where: str = "") -> list[Advice]:
    # Instant: one calibrated to leave the function as it is leaves the illness, too.
    place = where and f",where={where}"
    return [] if situation.norm else [Advice("norm", f"layer{place},way=instant", "n")]


def _init(situation: Situation) -> Advice:
    """Saturating units take their weights from Xavier, all others from He."""
    return Advice("init", "xavier" if situation.activation in ("tanh", "sigmoid") else "he", "i")


def _decades(name: Name, s: Signs, adaptive: bool) -> int:
    """How many times ten the rate has to grow."""
    if name != "rate too small":
        return 1
    short = s.moved if adaptive else None if s.stride is None else s.stride * WALKS / STRIDES
    # What is no number, or not measured, tells of no limit.
    short = min(short, 1.0) if short is not None and short > 1e-9 else 1e-9
    return max(1, min(3, math.ceil(math.log10(WALKS / short))))


def agrees(a: Advice, knob: str, value: str, old: str = "") -> bool:
    """Whether a turn does what was advised; of a rate only the direction counts."""
    if a.knob != knob or knob != "lr":
        return a.knob == knob and a.value.partition(",")[0] == value.partition(",")[0]
    relative, number = value[:1] in ("*", "/"), float(value.lstrip("*/"))
    up = (number > 1) == (value[0] == "*") if relative else bool(old) and number > float(old)
    return up == a.value.startswith("*") and (relative or bool(old))
