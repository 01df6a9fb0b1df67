"""How a run comes to its end: asked for from inside a step, or by what the loop raised."""

from __future__ import annotations

from tui_descent.protocol.events import Status
from tui_descent.training.run_description import describe


class StopRun(Exception):
    """Ends the loop from inside a step; the `with` of the watch swallows it."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def outcome(error: BaseException | None) -> tuple[Status, str]:
    """The status and the reason of a run that this ended."""
    if error is None:
        return "finished", ""
    if isinstance(error, StopRun):
        return error.status, error.reason
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted"
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "finished", ""  # a script that leaves as one that is content
    return "failed", describe(error)
