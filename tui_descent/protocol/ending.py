"""What a process's end means for its run: in words, and as the exit code of the command that shows it."""

from __future__ import annotations

from collections.abc import Mapping

from tui_descent.protocol.events import RunEnded, Status

FAILED = 1


def how_it_ended(code: int | None) -> str:
    """`signal 9`, `exit code 3` or that only its parent knows."""
    if code is None:
        return "cause unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def how_it_failed(code: int) -> str:
    """What became of a script once its run was over."""
    return f"the script {'was then ended by' if code < 0 else 'then failed with'} {how_it_ended(code)}"


def failed_after(ended: RunEnded) -> bool:
    """Whether the run came to its end and its script failed behind it: only a failure's output is kept."""
    return ended.status not in ("failed", "lost") and ended.log_path is not None


def exit_code(ended: RunEnded, usual: Mapping[Status, int]) -> int:
    """The status' usual one; a failed script's own, as a shell counts it, where that says no more than good or bad."""
    code, own = usual[ended.status], ended.exit_code
    if not own or ended.log_path is None or code not in (0, FAILED):
        return code
    return own if own > 0 else 128 - own
