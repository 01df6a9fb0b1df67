"""A race: the same scenario with several optimizers. Each of its lanes is a scenario of its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tui_descent.protocol.race import Lane
from tui_descent.scenario.optimizers import NAMES, known_rate, map_rate
from tui_descent.scenario.spec import MAX_LANES, OptimizerSpec, Scenario
from tui_descent.scenario.validate import nearest

MOST_RATE = 1e6


def lanes_of(spec: OptimizerSpec, chosen: Sequence[str]) -> tuple[Lane, ...]:
    """The lanes of a race of a scenario with the optimizer `spec`.

    `chosen` has a name or `NAME:RATE` for each lane, as in `adam:0.003`. Without a rate, a lane has the scenario's rate
    for its optimizer, or the one to which the knob `optimizer` would convert. Raises `ValueError`.
    """
    if not 1 <= len(chosen) <= MAX_LANES:
        raise ValueError(f"found {len(chosen)} optimizers; allowed: 1 to {MAX_LANES}")
    found: dict[str, Lane] = {}
    for text in chosen:
        name, sign, rate = (part.strip() for part in text.partition(":"))
        if name not in NAMES:
            raise ValueError(f'found "{name[:40]}"; allowed: {", ".join(NAMES)}{nearest(name, NAMES)}')
        lr = _rate(name, rate) if sign else _usual_rate(spec, name)
        lane = Lane(name=f"{name} {lr:g}" if sign else name, optimizer=name, lr=lr)
        if lane.name in found:
            raise ValueError(f'found "{lane.name}" twice; allowed: each once, or with different rates, as in sgd:0.1')
        found[lane.name] = lane
    return tuple(found.values())


def scenario_of(scenario: Scenario, lane: Lane) -> Scenario:
    """The scenario that a lane trains: the same with the lane's optimizer and rate."""
    optimizer = msgspec.structs.replace(scenario.optimizer, name=lane.optimizer, lr=lane.lr)
    return msgspec.structs.replace(scenario, optimizer=optimizer)


def _rate(name: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= MOST_RATE:
        raise ValueError(f'found "{name}:{text[:40]}"; allowed: NAME:RATE with a rate > 0, as in adam:0.003')
    return rate


def _usual_rate(spec: OptimizerSpec, name: str) -> float:
    if name == spec.name:
        return spec.lr
    return map_rate(spec.name, name, spec.lr, known=known_rate(spec, name)).lr
