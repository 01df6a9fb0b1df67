"""What the shell shows when a run is over: why it failed, and the last lines that its trainer or script printed."""

from __future__ import annotations

import sys

from tui_descent.protocol.events import RunEnded
from tui_descent.scenario.validate import escape_controls


def print_end(ended: RunEnded) -> None:
    """Print the last lines and the reason on stderr, with the file that has the whole output if it is kept."""
    for line in ended.log_tail:
        print(f"  | {escape_controls(line)}", file=sys.stderr)
    if ended.reason:
        print(f"tui-descent: {escape_controls(ended.reason)}", file=sys.stderr)
    if ended.log_path:
        print(f"tui-descent: the trainer's output is in {escape_controls(ended.log_path)}", file=sys.stderr)
