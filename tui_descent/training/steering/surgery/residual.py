"""Opens and closes skip connections around the blocks of a built-in net or of a user's net.

A skip is y = gate·x + branch·f(x). It is closed at (gate, branch) = (0, 1). The ways "ramp" and "gentle" change both
numbers linearly to (1, scale); "instant" sets them at once. A "rotation" moves (gate, branch) along the unit circle to
(sin π/4, cos π/4). Thus gate² + branch² stays 1, and the end is y = (x + f(x))/√2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from torch import nn

from tui_descent.training.setup.nets.block import Block, Skip, rezero
from tui_descent.training.steering.surgery.transition import ParameterChanges, Transition, parameter_changes

Way = Literal["instant", "ramp", "gentle", "rotation"]
RESIDUAL_STEPS = 20  # the number of updates of a ramp
WAY_STEPS: dict[str, int] = {"instant": 1, "ramp": RESIDUAL_STEPS, "gentle": 200, "rotation": 50}
LEARNED_SHARE = 0.5  # a net has learned something if its loss is below this fraction of the first loss
# A rotation is chosen for at most this many blocks, since each rotation divides the signal of the skip path by √2.
MAX_ROTATED = 10


class HasSkip(Protocol):
    """A block of a built-in net, or a `UserBlock`."""

    skip: Skip | None


def resolve_way(loss_start: float, loss_now: float, depth: int) -> Literal["rotation", "gentle", "ramp"]:
    """The way that `auto` stands for, given the first loss, the current loss and the number of blocks (`depth`).

    A net that has learned nothing gets a ramp. Otherwise it gets a rotation, or `gentle` if it has more than 10 blocks.
    The highest loss during the transition, measured on digits with ReLU, width 48, Adam at 1e-3 and a loss below 0.1
    before it: with 8 blocks instant 159 to 265, ramp 2.8 to 4.6, rotation 0.7 to 1.0; with 20 blocks ramp 5.3 to 6.1,
    rotation 1.9 to 2.3, gentle 0.9 to 1.3.
    """
    if not loss_now < LEARNED_SHARE * loss_start:
        return "ramp"
    return "rotation" if depth <= MAX_ROTATED else "gentle"


def default_scale(way: str, depth: int) -> float:
    """The factor of f(x) at the end: 1/√2 for a rotation, else 1/√depth, where `depth` is the number of blocks."""
    return math.sqrt(0.5) if way == "rotation" else float(depth**-0.5)


def open_skip(block: HasSkip, scale: float, *, steps: int, way: Way = "ramp") -> Transition:
    """Start a transition that opens a skip. The block's output changes from f(x) to x + scale·f(x), with a rotation to
    (x + f(x))/√2.

    If the skip is already open or partly open, the transition starts from its current gate and branch.
    """
    skip = block.skip if block.skip is not None else Skip(1.0, gate=0.0)
    block.skip = skip
    end = (math.sqrt(0.5), math.sqrt(0.5)) if way == "rotation" else (1.0, scale)
    return _move(block, skip, _position(skip), end, steps=steps, way=way, remove=False)


def close_skip(block: HasSkip, *, steps: int, way: Way = "ramp") -> Transition:
    """Start a transition that closes a skip. At the end the block's output is f(x), and its skip is removed."""
    assert block.skip is not None
    return _move(block, block.skip, _position(block.skip), (0.0, 1.0), steps=steps, way=way, remove=True)


def continue_skip(block: HasSkip, terms: dict[str, Any], *, steps: int) -> Transition:
    """The transition of a skip that is partly open already, from the `terms` of the transition that began it."""
    assert block.skip is not None
    start, end = tuple(terms["start"]), tuple(terms["end"])
    return _move(block, block.skip, start, end, steps=steps, way=terms["way"], remove=terms["remove"])


def is_learnt(block: HasSkip) -> bool:
    """Whether the branch of the block's skip is a parameter."""
    return block.skip is not None and isinstance(block.skip.branch, nn.Parameter)


def put_rezero(model: nn.Module, blocks: Iterable[Block]) -> ParameterChanges:
    """Give each of the `blocks` a skip with a learnt branch that starts at 0, so that its output is its input. A block
    that already has one keeps it.
    """
    before = dict(model.named_parameters())
    for block in blocks:
        if not is_learnt(block):
            block.put_skip(rezero(next(block.core.parameters())))
    return parameter_changes(model, before)


def fix_branches(model: nn.Module, blocks: Iterable[Block]) -> ParameterChanges:
    """Turn learnt branches into numbers of the same value, which a transition can change."""
    before = dict(model.named_parameters())
    for block in blocks:
        if block.skip is not None and isinstance(block.skip.branch, nn.Parameter):
            block.put_skip(Skip(block.skip.branch.item(), gate=block.skip.gate))
    return parameter_changes(model, before)


def _position(skip: Skip) -> tuple[float, float]:
    assert isinstance(skip.branch, float)
    return skip.gate, skip.branch


def _move(
    block: HasSkip,
    skip: Skip,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    steps: int,
    way: Way,
    remove: bool,
) -> Transition:
    """A transition of (gate, branch) from `start` to `end`: linear, or in polar coordinates for a rotation."""

    def set_(t: float) -> None:
        if t in (0.0, 1.0):
            skip.gate, skip.branch = end if t else start
        elif way == "rotation":
            angle = _lerp(math.atan2(*start), math.atan2(*end), t)
            length = _lerp(math.hypot(*start), math.hypot(*end), t)
            skip.gate, skip.branch = length * math.sin(angle), length * math.cos(angle)
        else:
            skip.gate, skip.branch = _lerp(start[0], end[0], t), _lerp(start[1], end[1], t)

    def done() -> None:
        if remove:
            block.skip = None

    return Transition(steps, set_, done, terms={"start": start, "end": end, "way": way, "remove": remove})


def _lerp(a: float, b: float, t: float) -> float:
    return a + t * (b - a)
