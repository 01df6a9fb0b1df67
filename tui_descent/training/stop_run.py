"""How a run ends: normally, by the exception `StopRun` raised inside a step, or by another exception of the loop."""

from __future__ import annotations

from tui_descent.protocol.events import Status
from tui_descent.training.run_description import describe

# Why a headless run stops if its keeper dies, because that is the command itself.
COMMAND_KILLED = "its command was killed"


class StopRun(SystemExit):
    """Ends the loop from inside a step. `Watch.__exit__` swallows it.

    Without a `with`, it ends the script, with exit code 0 unless the script catches it.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.code = 0
        self.status = status
        self.reason = reason


def outcome(error: BaseException | None) -> tuple[Status, str]:
    """Status and reason of a run that ended with the exception `error`, or without an exception."""
    if error is None:
        return "finished", ""
    if isinstance(error, StopRun):
        return error.status, error.reason
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted"
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "finished", ""  # sys.exit() without an error code
    return "failed", describe(error)
