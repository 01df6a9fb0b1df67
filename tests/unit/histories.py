"""Pasts made of events, and what a viewer that comes late has of them."""

from __future__ import annotations

from collections.abc import Iterable

from tui_descent.protocol.codec import HEADER, decode, frame, to_viewer
from tui_descent.protocol.events import AnyEvent, HistorySent, Rewound
from tui_descent.protocol.rewinding import KnobState
from tui_descent.telemetry.history import History


def fed(events: Iterable[AnyEvent]) -> History:
    history = History()
    for event in events:
        history.apply(event)
    return history


def sent(history: History) -> HistorySent:
    """As it comes over the wire."""
    found = decode(to_viewer, frame(history.send())[HEADER.size :])
    assert isinstance(found, HistorySent)
    return found


def travelled(history: History) -> History:
    """Over the wire, as a viewer gets it."""
    return History.receive(sent(history))


def rewound(
    start: tuple[int, int],
    to: tuple[int, int],
    segment: int,
    *,
    back: bool,
    what: str = "norm",
    force: tuple[int, ...] = (),
    knobs: tuple[KnobState, ...] = (),
) -> Rewound:
    """From (segment, step) `start` to `to`, a new segment."""
    return Rewound(
        from_segment=start[0],
        from_step=start[1],
        to_segment=to[0],
        to_step=to[1],
        segment=segment,
        step=to[1],
        what=what,
        back=back,
        in_force=force,
        knobs=knobs,
    )
