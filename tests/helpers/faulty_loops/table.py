"""The table of loops with a known fault: what is wrong with each, and what may be said about it.

A loop takes `watch` and the number of steps. Its fault is in the loop, the data or the net, never in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

Watching = Callable[..., Any]
Train = Callable[[Watching, int], object]
Kind = Literal["wiring", "numerics", "dynamics", "healthy"]
LOOPS: dict[str, FaultyLoop] = {}


class FaultyLoop(msgspec.Struct, frozen=True, kw_only=True):
    """A loop and the truth about it.

    `finds` are the findings to be said: all of them in a loop with a wiring fault, otherwise one of them. `also` are
    others that are true; everything else but "not clear" is false. `layers` are the layers of which `finds` may name
    one; empty if the fault belongs to no layer. `since` is the step from which on the fault shows; None if it is the
    first step with a number that is not finite. `harmful` is advice that would do harm: a knob, or a knob with a value.
    """

    name: str
    kind: Kind
    train: Train
    finds: frozenset[str]
    also: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    since: int | None = 0
    steps: int = 100
    harmful: frozenset[str] = frozenset()

    @property
    def true(self) -> frozenset[str]:
        """All findings that are true of this loop."""
        return self.finds | self.also | {"not clear"}


def loop_with(
    kind: Kind,
    *finds: str,
    also: str = "",
    layers: str = "",
    since: int | None = 0,
    steps: int | None = None,
    harmful: str = "",
) -> Callable[[Train], Train]:
    """Add a loop to the table. Several findings in `also`, and several pieces of advice, are separated by commas."""

    def add(train: Train) -> Train:
        name = train.__name__
        LOOPS[name] = FaultyLoop(
            name=name,
            kind=kind,
            train=train,
            finds=frozenset(finds),
            also=_words(also),
            layers=_words(layers),
            since=since,
            steps=steps or (100 if kind in ("wiring", "numerics") else 320),
            harmful=_words(harmful),
        )
        return train

    return add


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(",") if word.strip())
