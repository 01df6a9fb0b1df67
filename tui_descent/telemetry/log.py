"""The types of events that a run's log shows."""

from __future__ import annotations

from tui_descent.protocol.events import (
    CommandRejected,
    Diagnosed,
    Evaluated,
    KnobTurned,
    Marked,
    MetricLogged,
    Noted,
    NotFinite,
    PredictionChecked,
    RangeTestCompleted,
    Rewound,
    SnapshotSaved,
    StateChanged,
    StepsMissed,
)

LogEntry = (
    Evaluated
    | Diagnosed
    | PredictionChecked
    | KnobTurned
    | CommandRejected
    | Marked
    | MetricLogged
    | Noted
    | NotFinite
    | RangeTestCompleted
    | Rewound
    | SnapshotSaved
    | StateChanged
    | StepsMissed
)
