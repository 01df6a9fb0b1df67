"""What the log of a run is made of."""

from __future__ import annotations

from tui_descent.protocol.events import (
    CommandRejected,
    Diagnosed,
    Evaluated,
    Foretold,
    KnobTurned,
    Marked,
    MetricLogged,
    Noted,
    NotFinite,
    RatesSwept,
    Rewound,
    StateChanged,
    StepsMissed,
)

Fact = (
    Evaluated
    | Diagnosed
    | Foretold
    | KnobTurned
    | CommandRejected
    | Marked
    | MetricLogged
    | Noted
    | NotFinite
    | RatesSwept
    | Rewound
    | StateChanged
    | StepsMissed
)
