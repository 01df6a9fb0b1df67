"""Describes how a process exited, and chooses the exit code that the command returns."""

from __future__ import annotations

from collections.abc import Mapping

from tui_descent.protocol.events import RunEnded, Status


def describe_exit(code: int | None) -> str:
    """`signal 9`, `exit code 3`, or, without a code, `cause unknown`."""
    if code is None:
        return "cause unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def describe_script_failure(code: int) -> str:
    """Describe how a script failed after its run had ended."""
    return f"the script {'was then ended by' if code < 0 else 'then failed with'} {describe_exit(code)}"


def script_failed_after_run(ended: RunEnded) -> bool:
    """Whether the run ended well and its script failed afterwards."""
    return ended.status not in ("failed", "lost") and ended.log_path is not None and bool(ended.exit_code)


def exit_code(ended: RunEnded, usual: Mapping[Status, int]) -> int:
    """The exit code for a run's end: the code in `usual` for its status.

    If a script failed, its own code replaces it (128 + N for signal N, as in a shell). The status `lost` always has the
    code in `usual`, because a lost trainer has not ended by itself.
    """
    code, script_code = usual[ended.status], ended.exit_code
    if not script_code or ended.log_path is None or ended.status == "lost":
        return code
    return script_code if script_code > 0 else 128 - script_code
