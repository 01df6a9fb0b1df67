"""Parse, check and write knob commands in text form. The table of knobs is in `knob_table.py`. The same text form is
used everywhere: `knob[@target]=value[,way=…][,scale=…][,where=…]`. Parameters follow the value they belong to:
`schedule=warmup_cosine,warmup=100,floor=0.1`. A comma ends a value, so betas are written `0.9/0.95`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knob_table import CHANGE_STEPS, KNOBS, NEUTRAL_KNOBS, PACES, KnobSpec
from tui_descent.scenario.validate import Problem, convert, nearest

__all__ = [
    "CHANGE_STEPS",
    "KNOBS",
    "NEUTRAL_KNOBS",
    "PACES",
    "KnobSpec",
    "betas_text",
    "check",
    "combined",
    "new_value",
    "pair",
    "parse",
    "parse_at",
    "shown_value",
    "spec_of",
    "text_of",
]

_OPTIONS = ("way", "scale", "where")
# How a command names one of several optimizers, as in `lr@optimizer.g=*0.5`.
OPTIMIZER = "optimizer."


def parse(text: str) -> TurnKnob:
    """Parse and check a command in text form. Raises `ValueError`, which says what is allowed."""
    head, sign, tail = text.strip().partition("=")
    name, _, target = head.strip().partition("@")
    if name not in KNOBS:
        raise ValueError(f'unknown knob "{name[:40]}"; allowed: {", ".join(KNOBS)}{nearest(name, KNOBS)}')
    if not sign or not tail.strip():
        raise ValueError(f"expected {name}=value; allowed values: {KNOBS[name].values}")
    value, *options = (part.strip() for part in tail.split(","))
    found: dict[str, str] = {}
    parameters: list[tuple[str, int | float]] = []
    takes = KNOBS[name].parameters.get(value, ())
    for option in options:
        key, _, given = (part.strip() for part in option.partition("="))
        if key in takes:
            parameters.append((key, int(given) if re.fullmatch("[0-9]{1,15}", given) else _number(given, key)))
        elif key in _OPTIONS:
            found[key] = given
        else:
            raise ValueError(f'unknown option "{key[:40]}" of {name}; allowed: {", ".join((*takes, *_OPTIONS))}')
    scale = _number(found["scale"], "scale") if "scale" in found else None
    command = TurnKnob(
        knob=name,
        target=target or "all",
        value=value,
        way=found.get("way"),
        scale=scale,
        where=found.get("where"),
        parameters=tuple(parameters),
    )
    return check(command)


def parse_at(text: str) -> tuple[int, TurnKnob]:
    """Parse `STEP:knob=value`, the form used by `--at`. Raises `ValueError`."""
    at, sign, command = text.partition(":")
    if not sign or not re.fullmatch("[0-9]{1,15}", at.strip()):
        raise ValueError(f'expected STEP:knob=value, as in 150:residual=on; found "{text[:60]}"')
    return int(at), parse(command)


def text_of(command: TurnKnob) -> str:
    """The text form of a command, the inverse of `parse`."""
    target = "" if command.target == "all" else f"@{command.target}"
    way = f",way={command.way}" if command.way else ""
    scale = f",scale={command.scale!r}" if command.scale is not None else ""
    where = f",where={command.where}" if command.where else ""
    parameters = "".join(f",{name}={value!r}" for name, value in command.parameters)
    return f"{command.knob}{target}={command.value}{way}{scale}{where}{parameters}"


def check(command: TurnKnob) -> TurnKnob:
    """Return the command unchanged if the knob accepts it. Raises `ValueError`, which says what is allowed."""
    knob = KNOBS.get(command.knob)
    if knob is None:
        raise ValueError(f'unknown knob "{command.knob[:40]}"; allowed: {", ".join(KNOBS)}')
    _check_value(command.value, knob)
    spec_of(command)
    if command.way is not None and command.way not in knob.ways:
        allowed = f"allowed: {', '.join(knob.ways)}" if knob.ways else f"{knob.name} does not accept `way`"
        raise ValueError(f'way = "{command.way[:40]}"; {allowed}')
    if command.scale is not None and not (knob.takes_scale and 0 < command.scale <= 10):
        allowed = "allowed: a number > 0 and ≤ 10" if knob.takes_scale else f"{knob.name} does not accept `scale`"
        raise ValueError(f"scale = {command.scale:g}; {allowed}")
    if command.where is not None and command.where not in knob.places:
        allowed = f"allowed: {', '.join(knob.places)}" if knob.places else f"{knob.name} does not accept `where`"
        raise ValueError(f'where = "{command.where[:40]}"; {allowed}')
    if command.target != "all" and knob.targets == "net":
        raise ValueError(f"{knob.name} does not accept a target; it acts on the whole run")
    if command.target != "all" and knob.targets == "optimizer" and not command.target.startswith(OPTIMIZER):
        allowed = f"{knob.name}@{OPTIMIZER}NAME, if the run has several optimizers"
        raise ValueError(f'{knob.name} does not accept the target "{command.target[:40]}"; allowed: {allowed}')
    if command.target == "all" and command.value in knob.one_layer_values:
        raise ValueError(f"{knob.name}={command.value} needs a layer; allowed: {knob.name}@LAYER={command.value}")
    return command


def spec_of(command: TurnKnob) -> Any:
    """The value and its parameters as a struct of the scenario; None if there is no such struct for the knob.

    Raises `ValueError`, which says what is allowed.
    """
    knob = KNOBS[command.knob]
    takes = knob.parameters.get(command.value, ())
    given = dict(command.parameters)
    for name in given:
        if name not in takes:
            allowed = f"allowed: {', '.join(takes)}{nearest(name, takes)}" if takes else "allowed: no parameters"
            raise ValueError(f'{knob.name}={command.value} does not accept "{name[:40]}"; {allowed}')
    if len(given) < len(command.parameters):
        raise ValueError(f"{knob.name}={command.value}: a parameter is given twice")
    if knob.spec is None:
        return None
    problems: list[Problem] = []
    spec = convert(knob.spec, {"name": command.value, **given}, "", problems)
    if problems:
        raise ValueError("; ".join(map(str, problems)))
    return spec


def combined(first: TurnKnob, then: TurnKnob) -> TurnKnob | None:
    """One command with the same result as `first` followed by `then`, or None if there is no such command.

    Relative changes are multiplied: twenty times `*1.25` become `*86.7…`. An exact value replaces an earlier one.
    """
    knob = KNOBS.get(first.knob)
    if knob is None or not knob.combinable or msgspec.structs.replace(first, value=then.value) != then:
        return None
    try:
        check(first), check(then)
        if then.value[0] not in "*/":
            # A relative change may still be rejected when it is applied; an exact value that passed `check` is not.
            return then if first.value[0] not in "*/" else None
        value = _factor_of(first.value) * _factor_of(then.value)
        sign = "*" if first.value[0] in "*/" else ""
        return check(msgspec.structs.replace(first, value=f"{sign}{value!r}"))
    except ValueError:
        return None


def _factor_of(text: str) -> float:
    """The number in `*1.25` or `1.25`; for `/2` its reciprocal, 0.5."""
    return 1 / float(text[1:]) if text[0] == "/" else float(text.removeprefix("*"))


def _check_value(value: str, knob: KnobSpec) -> None:
    if value in knob.choices:
        return
    if knob.kind == "number":
        _factor_or_value(value, knob)
    elif knob.kind == "pace":
        if not 0 < _number(value, "pace") <= knob.high:
            raise ValueError(f'pace = {value[:40]}; allowed: a number of steps per second > 0, or "max"')
    elif knob.kind == "pair":
        pair(value)
    else:
        hint = nearest(value, knob.choices)
        raise ValueError(f'{knob.name} = "{value[:40]}"; allowed: {", ".join(knob.choices)}{hint}')


def new_value(text: str, old: float, *, knob: str = "lr") -> float:
    """A number knob's new value from `0.3`, `*1.25` or `/10`. Raises `ValueError` if it is outside the range."""
    row = KNOBS[knob]
    number = _factor_or_value(text, row)
    value = old * number if text[0] == "*" else old / number if text[0] == "/" else number
    if row.whole and math.isfinite(value):
        value = round(value)
    if not _inside(value, row):
        raise ValueError(f"{knob} would become {value:g}; allowed: {_range(row)}")
    return value


def pair(text: str) -> tuple[float, float]:
    """Parse two betas, as in `0.9/0.95`. Raises `ValueError`."""
    first, sign, second = text.partition("/")
    if not sign:
        raise ValueError(f'betas = "{text[:40]}"; allowed: {KNOBS["betas"].values}')
    found = _number(first, "betas"), _number(second, "betas")
    if not all(0 <= value < 1 for value in found):
        raise ValueError(f"betas = {text[:40]}; allowed: two numbers ≥ 0 and < 1")
    return found


def betas_text(betas: tuple[float, float]) -> str:
    """The text form of two betas, the inverse of `pair`."""
    return f"{betas[0]:.6g}/{betas[1]:.6g}"


def shown_value(knob: str, value: str) -> str:
    """A knob's value to be shown. A learning rate has at most four digits: `0.1953`."""
    if knob != "lr":
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _factor_or_value(text: str, knob: KnobSpec) -> float:
    relative = text[:1] in ("*", "/")
    number = _number(text[1:] if relative else text, knob.name)
    if relative and 0 < number <= 1e6:
        return number
    if relative or not _inside(number, knob):
        high = f", at most {knob.high:g}" if knob.includes_high else ""
        raise ValueError(f"{knob.name} = {text[:40]}; allowed: {knob.values}{high}")
    return number


def _inside(value: float, knob: KnobSpec) -> bool:
    if not math.isfinite(value) or (knob.whole and value != int(value)):
        return False
    above = value >= knob.low if knob.includes_low else value > knob.low
    return above and (value <= knob.high if knob.includes_high else value < knob.high)


def _range(knob: KnobSpec) -> str:
    noun = "a whole number" if knob.whole else "a number"
    above, below = "≥" if knob.includes_low else ">", "≤" if knob.includes_high else "<"
    return f"{noun} {above} {knob.low:g} and {below} {knob.high:g}"


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f'{name} = "{text[:40]}"; allowed: a number') from None
    if not math.isfinite(number):
        raise ValueError(f"{name} = {text[:40]}; allowed: a finite number")
    return number
