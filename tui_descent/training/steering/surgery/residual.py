"""Residual connections opened and closed around blocks, of a built-in net or of a foreign one.

A skip is y = gate·x + branch·f(x), closed at (0, 1). A ramp, gentle or not, goes in a straight line to (1, branch). A
rotation turns to (sin π/4, cos π/4), that is (x + f(x))/√2, so that the sum of squares keeps at 1 on the way.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

from tui_descent.training.setup.nets.block import Skip
from tui_descent.training.steering.surgery.transition import Transition

Way = Literal["instant", "ramp", "gentle", "rotation"]
RESIDUAL_STEPS = 20
WAY_STEPS: dict[str, int] = {"instant": 1, "ramp": RESIDUAL_STEPS, "gentle": 200, "rotation": 50}
LEARNED_SHARE = 0.5  # a net works once its loss has fallen below this share of its start
MAX_ROTATED = 10  # blocks: every rotated one takes the skip path's signal down by √2


class HasSkip(Protocol):
    """A block: a built-in one, or `UserBlock` a foreign module."""

    skip: Skip | None


def resolve_way(loss_start: float, loss_now: float, depth: int) -> Literal["rotation", "gentle", "ramp"]:
    """The way `auto` stands for: a working net is rotated, with more than 10 blocks ramped gently; any other ramped.

    Digits, ReLU, W48, Adam 1e-3, at a loss under 0.1, highest loss on the way: 8 blocks instant 159…265, ramp 2.8…4.6,
    rotation 0.7…1.0; 20 blocks ramp 5.3…6.1, rotation 1.9…2.3, gentle 0.9…1.3.
    """
    if not loss_now < LEARNED_SHARE * loss_start:
        return "ramp"
    return "rotation" if depth <= MAX_ROTATED else "gentle"


def default_scale(way: str, depth: int) -> float:
    """The branch's coefficient at the end: of a rotation 1/√2, else 1/√depth."""
    return math.sqrt(0.5) if way == "rotation" else float(depth**-0.5)


def open_skip(block: HasSkip, scale: float, *, steps: int, way: Way = "ramp") -> Transition:
    """A skip that opens: the function is unchanged at first, x + scale·f(x) at the end, rotated (x + f(x))/√2.

    One that is open, or under way, goes on from where it stands.
    """
    skip = block.skip if block.skip is not None else Skip(1.0, gate=0.0)
    block.skip = skip
    end = (math.sqrt(0.5), math.sqrt(0.5)) if way == "rotation" else (1.0, scale)
    return _move(block, skip, end, steps=steps, way=way, remove=False)


def close_skip(block: HasSkip, *, steps: int, way: Way = "ramp") -> Transition:
    """A skip that closes, to f(x) alone; the block is plain again at the end."""
    assert block.skip is not None
    return _move(block, block.skip, (0.0, 1.0), steps=steps, way=way, remove=True)


def _move(block: HasSkip, skip: Skip, end: tuple[float, float], *, steps: int, way: Way, remove: bool) -> Transition:
    """From where the skip stands to `end` = (gate, branch): in a straight line, or by angle and length."""
    start = (skip.gate, skip.branch)

    def set_(t: float) -> None:
        if t == 1.0:
            skip.gate, skip.branch = end
        elif way == "rotation":
            angle = _lerp(math.atan2(*start), math.atan2(*end), t)
            length = _lerp(math.hypot(*start), math.hypot(*end), t)
            skip.gate, skip.branch = length * math.sin(angle), length * math.cos(angle)
        else:
            skip.gate, skip.branch = _lerp(start[0], end[0], t), _lerp(start[1], end[1], t)

    def done() -> None:
        if remove:
            block.skip = None

    return Transition(steps, set_, done)


def _lerp(a: float, b: float, t: float) -> float:
    return a + t * (b - a)
