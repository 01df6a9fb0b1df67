"""What the shell shows when a run is over: why it failed, and the last lines that its trainer or script printed."""

from __future__ import annotations

from pathlib import Path

from tui_descent import output
from tui_descent.protocol.events import RunEnded


def print_end(ended: RunEnded, *, with_log: bool = True) -> None:
    """Print the last lines and the reason on stderr, with the file that has the whole output if it is kept."""
    if with_log:
        output.say(*(f"  | {line}" for line in ended.log_tail))
    if ended.reason:
        output.say(f"tui-descent: {ended.reason}")
    if ended.log_path and ended.log_tail:
        output.say(f"tui-descent: the trainer's output is in {ended.log_path}")


def print_trouble(trouble: str, log_path: Path | None) -> None:
    """Print why the connection to a run was lost, and where the output of a script is that may still be running."""
    output.say(f"tui-descent: {trouble}")
    if log_path is not None and log_path.exists():
        output.say(f"tui-descent: the script may still be running; its output is in {log_path}")
