"""What the shell shows when a run is over: why it failed, and the last lines that its trainer or script printed."""

from __future__ import annotations

import sys
from pathlib import Path

from tui_descent.protocol.events import RunEnded
from tui_descent.scenario.validate import escape_controls


def print_end(ended: RunEnded) -> None:
    """Print the last lines and the reason on stderr, with the file that has the whole output if it is kept."""
    for line in ended.log_tail:
        print(f"  | {escape_controls(line)}", file=sys.stderr)
    if ended.reason:
        print(f"tui-descent: {escape_controls(ended.reason)}", file=sys.stderr)
    if ended.log_path and ended.log_tail:
        print(f"tui-descent: the trainer's output is in {escape_controls(ended.log_path)}", file=sys.stderr)


def print_trouble(trouble: str, log_path: Path | None) -> None:
    """Print why the connection to a run was lost, and where the output of a script is that may still be running."""
    print(f"tui-descent: {escape_controls(trouble)}", file=sys.stderr)
    if log_path is not None and log_path.exists():
        print(
            f"tui-descent: the script may still be running; its output is in {escape_controls(str(log_path))}",
            file=sys.stderr,
        )
