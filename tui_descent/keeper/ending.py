"""Builds the `RunEnded` event: the run ended by itself, at a stop request, or because the trainer died.

`trainer.py` checks whether the trainer's process is alive.
"""

from __future__ import annotations

import signal
import time

import msgspec

from tui_descent.keeper.trainer import Trainer, log_tail
from tui_descent.protocol.events import RunEnded
from tui_descent.protocol.exit_status import describe_exit, describe_script_failure
from tui_descent.protocol.launch import LOG_FILE, Launch

TERMINATE_AFTER_S = 10.0  # from a stop request to SIGTERM
KILL_AFTER_S = 3.0  # from SIGTERM to SIGKILL


class Ending:
    """Keeps the stop request and the trainer's own report of its end, until the trainer's process has exited."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._stop_reason = ""
        self._stop_requested_s: float | None = None
        self._signalled = False
        # The trainer's own `RunEnded`. It is published only when the process has exited and all its steps are
        # published.
        self.reported: RunEnded | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether the trainer has been asked to stop."""
        return self._stop_requested_s is not None

    @property
    def script_goes_on(self) -> bool:
        """Whether the run has ended but its process, a user's script, may still be running code after its loop."""
        return self.reported is not None and self._launch.command is not None

    def request_stop(self, reason: str) -> None:
        """Record that the trainer is asked to stop. Only the first reason is kept."""
        if self._stop_requested_s is None:
            self._stop_requested_s, self._stop_reason = time.monotonic(), reason

    def enforce_stop(self, trainer: Trainer) -> None:
        """Signal a trainer that does not obey the stop request.

        A script that still runs after its loop is not signalled.
        """
        assert self._stop_requested_s is not None
        if self.script_goes_on:
            return
        overdue_s = time.monotonic() - self._stop_requested_s - TERMINATE_AFTER_S
        self._signalled = overdue_s > 0
        if overdue_s > KILL_AFTER_S:
            trainer.signal(signal.SIGKILL)
        elif overdue_s > 0:
            trainer.signal(signal.SIGTERM)

    def event(self, trainer: Trainer, step: int) -> RunEnded:
        """The run's last event, for a trainer that has exited before update `step`."""
        code = trainer.exit_code()
        if self.reported is not None:
            return self._reported_end(self.reported, code)
        if self.stop_requested:
            reason = f"{self._stop_reason}; the trainer had to be killed" if code else self._stop_reason
            return RunEnded(status="stopped", step=step, reason=reason, exit_code=code)
        return self._with_log(
            RunEnded(
                status="lost",
                step=step,
                reason=f"trainer lost ({describe_exit(code)}) at step {step}",
                exit_code=code,
            )
        )

    def _reported_end(self, ended: RunEnded, code: int | None) -> RunEnded:
        ended = msgspec.structs.replace(ended, exit_code=code)
        if ended.status == "failed":
            return self._with_log(ended)
        if code and self._launch.command is not None and not self._signalled:  # the script failed after its run
            reasons = filter(None, [ended.reason, describe_script_failure(code)])
            return self._with_log(msgspec.structs.replace(ended, reason="; ".join(reasons)))
        return ended

    def _with_log(self, ended: RunEnded) -> RunEnded:
        folder = self._launch.path
        return msgspec.structs.replace(ended, log_tail=log_tail(folder), log_path=str(folder / LOG_FILE))
