"""What the shell shows when a run is over: why it failed, and the last lines that its trainer or script printed."""

from __future__ import annotations

import sys
from pathlib import Path

from tui_descent.protocol.events import RunEnded
from tui_descent.scenario.validate import escape_controls
from tui_descent.telemetry.script_output import last_lines

LINES = 12


def print_end(ended: RunEnded, script_log: Path | None = None) -> None:
    """Print the last lines and the reason on stderr, with the file that has the whole output.

    `script_log` is the file to which a user's script printed; its last lines are shown also after a success.
    """
    lines, path = ended.log_tail, ended.log_path
    if not lines and script_log is not None:
        lines, path = last_lines(script_log, LINES), str(script_log)
    for line in lines:
        print(f"  | {escape_controls(line[:500])}", file=sys.stderr)
    if ended.reason:
        print(f"tui-descent: {escape_controls(ended.reason)}", file=sys.stderr)
    if path and lines:
        print(f"tui-descent: the trainer's output is in {escape_controls(path)}", file=sys.stderr)


def print_trouble(trouble: str, log_path: Path | None) -> None:
    """Print why the connection to a run was lost, and where the output of a script is that may still be running."""
    print(f"tui-descent: {escape_controls(trouble)}", file=sys.stderr)
    if log_path is not None and log_path.exists():
        print(
            f"tui-descent: the script may still be running; its output is in {escape_controls(str(log_path))}",
            file=sys.stderr,
        )
