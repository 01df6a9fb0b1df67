"""What a keeper knows of its run when it starts: everything that was recorded, if the run is resumed or its last keeper
has died.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tui_descent.keeper.event_stream import Position
from tui_descent.protocol.launch import Launch
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import Record, RecordError

# How many clients may have connected between the last commit of a keeper and its death.
MAX_UNRECORDED_CLIENTS = 1000


@dataclass
class Past:
    """`position` is where the record of a dead keeper ends, `clients` the highest number of one of its clients. Both
    are 0 if no keeper has died.
    """

    history: History = field(default_factory=History)
    position: Position = field(default_factory=Position)
    clients: int = 0

    @classmethod
    def of(cls, launch: Launch, *, takes_over: bool) -> Past:
        """The past of a run. It is empty if nothing is recorded, or if the record cannot be read.

        With `takes_over`, the last keeper has died and its trainer goes on.
        """
        if not takes_over and launch.resume is None:
            return cls()
        try:
            with Record.open(launch.path) as record:
                history, values = record.history(), record.about.values
        except RecordError:
            return cls()
        if not takes_over:
            history.ended = None
            return cls(history)
        clients = int(values.get("clients") or 0) + MAX_UNRECORDED_CLIENTS
        return cls(history, Position.of(values), clients)
