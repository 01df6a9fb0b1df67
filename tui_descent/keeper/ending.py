"""Builds the `RunEnded` event. A run ends by itself, at a stop request, or because the trainer dies. `trainer.py`
checks whether the trainer's process is alive.
"""

from __future__ import annotations

import signal
import time

import msgspec

from tui_descent.keeper.trainer import Trainer, log_tail
from tui_descent.protocol.events import RunEnded
from tui_descent.protocol.exit_status import describe_exit, describe_script_failure
from tui_descent.protocol.launch import CONNECTED_FILE, LOG_FILE, Launch, unreachable

TERMINATE_AFTER_S = 10.0  # from a stop request to SIGTERM
KILL_AFTER_S = 3.0  # from SIGTERM to SIGKILL
# If one of these signals ends a trainer that cannot handle signals yet, the trainer has been stopped, not lost.
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
NEVER_CALLED = "this script never called watch(): see the README"
NO_STEPS = "watch() was called, but no run.step() followed in the same process"


class Ending:
    """Keeps the stop request and the trainer's own report of its end, until the trainer's process has exited."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._is_script = launch.command is not None
        self._stop_reason = ""
        self._stop_requested_s: float | None = None
        self._kill_requested_s: float | None = None
        self._signalled = False
        self._ended_early = False
        # Whether the trainer has reported that it is stopping. A script may then save for as long as it needs.
        self.obeyed = False
        # The trainer's own `RunEnded`. It is published only when the process has exited and all its steps are
        # published.
        self.reported: RunEnded | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether the trainer has been asked to stop."""
        return self._stop_requested_s is not None

    @property
    def script_goes_on(self) -> bool:
        """Whether the loop has ended but its process, a user's script, may still be running code after it."""
        return self._is_script and (self.obeyed or self.reported is not None)

    @property
    def _forced(self) -> bool:
        """Whether the trainer was killed because it did not stop in time, and not because a person asked for that."""
        return self._signalled and self._kill_requested_s is None

    def request_stop(self, reason: str) -> None:
        """Record that the trainer is asked to stop. Only the first reason is kept."""
        if self._stop_requested_s is None:
            self._stop_requested_s, self._stop_reason = time.monotonic(), reason

    def request_kill(self, reason: str) -> None:
        """Record that the trainer must be ended by signals, whatever it is doing."""
        self.request_stop(reason)
        self._kill_requested_s = self._kill_requested_s or time.monotonic()

    def enforce_stop(self, trainer: Trainer, *, attached: int, started: bool = True) -> None:
        """Signal a trainer that does not obey the stop request, or that has not `started` the run yet.

        A script that still runs after its loop is not signalled, unless this was requested. As long as viewers are
        attached, a person decides whether to wait for a script.
        """
        assert self._stop_requested_s is not None
        if not started and not self._is_script and not self._ended_early:
            # It would obey only after it has imported torch and built the network. It has nothing to save yet.
            self._ended_early = True
            trainer.signal(signal.SIGTERM)
        overdue_s = time.monotonic() - self._stop_requested_s - TERMINATE_AFTER_S
        if self._kill_requested_s is not None:
            overdue_s = time.monotonic() - self._kill_requested_s
        elif self.script_goes_on or (self._is_script and attached):
            return
        if overdue_s >= 0:
            self._signalled = True
            trainer.signal(signal.SIGKILL if overdue_s > KILL_AFTER_S else signal.SIGTERM)

    def event(self, trainer: Trainer, step: int, *, started: bool = True) -> RunEnded:
        """The run's last event, for a trainer that has exited before update `step`.

        `started`: whether the trainer has reported its net.
        """
        code = trainer.exit_code()
        if self.reported is not None:
            return self._reported_end(self.reported, code)
        if self.stop_requested:
            killed = "; the trainer had to be killed" if code and self._forced else ""
            return self._reported_end(
                RunEnded(status="stopped", step=step, reason=f"{self._stop_reason}{killed}"), code
            )
        ended = self._script_end(code, step, started=started) if self._is_script and code is not None else None
        if ended is not None:
            return self._with_log(ended) if code else ended
        if not self._is_script and code is not None and -code in STOP_SIGNALS:
            return RunEnded(status="stopped", step=step, reason=signal.Signals(-code).name, exit_code=code)
        return self._with_log(
            RunEnded(
                status="lost",
                step=step,
                reason=f"trainer lost ({describe_exit(code)}) at step {step}",
                exit_code=code,
            )
        )

    def _script_end(self, code: int, step: int, *, started: bool) -> RunEnded | None:
        """The end of a script whose run has not reported an end; None if the script was lost during its run."""
        folder = self._launch.path
        why = "" if started else unreachable(folder)
        if not why and (folder / CONNECTED_FILE).exists():
            if code == 0 and not started:
                return RunEnded(status="finished", step=0, reason=NO_STEPS, exit_code=0)
            if code <= 0:
                return None
            reason = f"the script ended with exit code {code}"
            return RunEnded(status="failed", step=step, reason=reason, exit_code=code)
        reason = why or NEVER_CALLED
        if code:
            ended = f"the script {'was ended by' if code < 0 else 'failed with'} {describe_exit(code)}"
            reason = f"{why}; {describe_script_failure(code)}" if why else f"{ended} before it called watch()"
        return RunEnded(status="failed" if code else "finished", step=step, reason=reason, exit_code=code)

    def _reported_end(self, ended: RunEnded, code: int | None) -> RunEnded:
        ended = msgspec.structs.replace(ended, exit_code=code)
        if ended.status == "failed":
            ended = self._with_log(ended)
            # The log of a scenario's trainer has only our own traceback, which adds nothing to the reason.
            return ended if self._is_script else msgspec.structs.replace(ended, log_tail=())
        if code and self._is_script and not self._forced:  # the script failed after its run
            reasons = filter(None, [ended.reason, describe_script_failure(code)])
            return self._with_log(msgspec.structs.replace(ended, reason="; ".join(reasons)))
        return ended

    def _with_log(self, ended: RunEnded) -> RunEnded:
        folder = self._launch.path
        return msgspec.structs.replace(ended, log_tail=log_tail(folder), log_path=str(folder / LOG_FILE))
