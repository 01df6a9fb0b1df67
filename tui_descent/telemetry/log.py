"""Which events a run's log shows."""

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

LogEntry = (
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
