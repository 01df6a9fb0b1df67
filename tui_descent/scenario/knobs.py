"""Everything that can be turned: one table for keys, palette, command line, plan and validation.

A turn has one text form everywhere: `knob[@target]=value[,way=…][,scale=…]`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.spec import Activation
from tui_descent.scenario.validate import nearest

PACES = ("1", "2", "5", "10", "30", "60", "120", "300", "1000", "max")


class Knob(msgspec.Struct, frozen=True, kw_only=True):
    """One steerable thing. `needs` names what a run must have for it; of `ways` the first is the default."""

    name: str
    title: str
    kind: Literal["number", "choice", "pace"]
    values: str
    acts: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = math.inf
    ways: tuple[str, ...] = ()
    takes_scale: bool = False
    targets: Literal["net", "block"] = "net"
    needs: Literal["optimizer", "blocks", "loop"] = "loop"


KNOBS: dict[str, Knob] = {
    k.name: k
    for k in (
        Knob(
            name="lr",
            title="learning rate",
            kind="number",
            values="a number > 0, or *1.25, /10 relative to now",
            acts="from the next step on; a multiplier on the schedule, so it survives the schedule's next step",
            low=0.0,
            high=1e6,
            needs="optimizer",
        ),
        Knob(
            name="activation",
            title="activation",
            kind="choice",
            values="one of the activations; way blend (over 50 steps) or instant",
            acts="blend mixes old and new over 50 steps; instant swaps",
            choices=get_args(Activation),
            ways=("blend", "instant"),
            targets="block",
            needs="blocks",
        ),
        Knob(
            name="residual",
            title="residual connection",
            kind="choice",
            values="off or on; way ramp (over 20 steps) or instant; scale of the branch, 1/√depth by default",
            acts="on: y = x + scale·f(x) around every block, opened over 20 steps from y = f(x)",
            choices=("off", "on"),
            ways=("ramp", "instant"),
            takes_scale=True,
            targets="block",
            needs="blocks",
        ),
        Knob(
            name="pace",
            title="pace",
            kind="pace",
            values="steps a second, or max",
            acts="at once",
            high=1e6,
        ),
    )
}


def parse(text: str) -> TurnKnob:
    """A turn from its text form, checked. Raises `ValueError` with what is allowed."""
    head, sign, tail = text.strip().partition("=")
    name, _, target = head.strip().partition("@")
    if name not in KNOBS:
        raise ValueError(f'unknown knob "{name[:40]}"; allowed: {", ".join(KNOBS)}{nearest(name, KNOBS)}')
    if not sign or not tail.strip():
        raise ValueError(f"expected {name}=value; {name} takes {KNOBS[name].values}")
    value, *options = (part.strip() for part in tail.split(","))
    way, scale = None, None
    for option in options:
        key, _, given = option.partition("=")
        if key == "way":
            way = given
        elif key == "scale":
            scale = _number(given, "scale")
        else:
            raise ValueError(f'unknown option "{key[:40]}" of {name}; allowed: way, scale')
    return check(TurnKnob(knob=name, target=target or "all", value=value, way=way, scale=scale))


def parse_at(text: str) -> tuple[int, TurnKnob]:
    """`STEP:turn`, as `--at` takes it. Raises `ValueError`."""
    at, sign, turn = text.partition(":")
    if not sign or not at.strip().isdecimal():
        raise ValueError(f'expected STEP:knob=value, as in 150:residual=on; found "{text[:60]}"')
    return int(at), parse(turn)


def text_of(turn: TurnKnob) -> str:
    """The text form that `parse` reads back."""
    target = "" if turn.target == "all" else f"@{turn.target}"
    way = f",way={turn.way}" if turn.way else ""
    scale = f",scale={turn.scale!r}" if turn.scale is not None else ""
    return f"{turn.knob}{target}={turn.value}{way}{scale}"


def check(turn: TurnKnob) -> TurnKnob:
    """The same turn if its value is one the knob takes. Raises `ValueError` with the range."""
    knob = KNOBS.get(turn.knob)
    if knob is None:
        raise ValueError(f'unknown knob "{turn.knob[:40]}"; allowed: {", ".join(KNOBS)}')
    if knob.kind == "number":
        _factor_or_value(turn.value, knob)
    elif knob.kind == "pace":
        if turn.value != "max" and not 0 < _number(turn.value, "pace") <= knob.high:
            raise ValueError(f'pace = {turn.value[:40]}; allowed: steps a second > 0, or "max"')
    elif turn.value not in knob.choices:
        hint = nearest(turn.value, knob.choices)
        raise ValueError(f'{knob.name} = "{turn.value[:40]}"; allowed: {", ".join(knob.choices)}{hint}')
    if turn.way is not None and turn.way not in knob.ways:
        allowed = f"allowed: {', '.join(knob.ways)}" if knob.ways else f"{knob.name} has no ways"
        raise ValueError(f'way = "{turn.way[:40]}"; {allowed}')
    if turn.scale is not None and not (knob.takes_scale and 0 < turn.scale <= 10):
        allowed = "allowed: a number > 0 and ≤ 10" if knob.takes_scale else f"{knob.name} takes no scale"
        raise ValueError(f"scale = {turn.scale:g}; {allowed}")
    if turn.target != "all" and knob.targets == "net":
        raise ValueError(f"{knob.name} has no targets; it acts on the whole run")
    return turn


def new_value(text: str, old: float) -> float:
    """A number knob's new value from `0.3`, `*1.25` or `/10`. Raises `ValueError` when it leaves the knob's range."""
    number = _factor_or_value(text, KNOBS["lr"])
    value = old * number if text[0] == "*" else old / number if text[0] == "/" else number
    if not (math.isfinite(value) and 0 < value <= KNOBS["lr"].high):
        raise ValueError(f"lr would become {value:g}; allowed: a number > 0 and ≤ {KNOBS['lr'].high:g}")
    return value


def _factor_or_value(text: str, knob: Knob) -> float:
    digits = text[1:] if text[:1] in ("*", "/") else text
    number = _number(digits, knob.name)
    if not knob.low < number <= knob.high:
        raise ValueError(f"{knob.name} = {text[:40]}; allowed: {knob.values}, at most {knob.high:g}")
    return number


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f'{name} = "{text[:40]}"; allowed: a number') from None
    if not math.isfinite(number):
        raise ValueError(f"{name} = {text[:40]}; allowed: a finite number")
    return number
