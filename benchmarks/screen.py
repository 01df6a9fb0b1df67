"""What drawing costs: the dashboard's CPU time and what it writes to the terminal, for each view and an open dialog.

A preset runs at full speed in a pty, 180×50 with true colour unless told otherwise. For each view the dashboard's own
CPU seconds (not the trainer's) and the bytes that it writes are counted over some seconds.

    python benchmarks/screen.py --seconds 60
    python benchmarks/screen.py --seconds 10 --views overview,dialog --size 80x24
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from terminal import Terminal

# The keys that open each view from the one before it in this table; `dialog` is a list of choices over the overview.
VIEWS = {
    "overview": ["1"],
    "layers": ["2"],
    "events": ["3"],
    "chain rule": ["4"],
    "curvature": ["5"],
    "metrics": ["6"],
    "task": ["8"],
    "lens": ["9"],
    "backward pass": ["4", "enter"],
    "dialog": ["1", "o"],
}
# The first seconds of a run are not typical: the axes and scales of its charts still grow.
WARM_UP_S = 5.0
SETTLE_S = 1.5


def cpu_s(pid: int) -> float:
    """CPU seconds of one process and its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vanishing")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each view is measured")
    parser.add_argument("--size", default="180x50", help="columns x rows of the terminal")
    parser.add_argument("--views", default=",".join(VIEWS), help="comma-separated")
    args = parser.parse_args()
    columns, rows = map(int, args.size.split("x"))
    names = args.views.split(",")
    if unknown := [name for name in names if name not in VIEWS]:
        parser.error(f"unknown view: {unknown[0]}; the views are {', '.join(VIEWS)}")
    with tempfile.TemporaryDirectory(prefix="td") as home:
        command = [sys.executable, "-m", "tui_descent", "run", args.preset, "--pace", "max", "--steps", "10000000"]
        terminal = Terminal(command, columns=columns, rows=rows, env={"TUI_DESCENT_HOME": home})
        try:
            terminal.wait("running")
            _count_bytes(terminal, WARM_UP_S)
            print(f"{args.preset} at full speed, {columns}×{rows}, {args.seconds:g} s per view\n")
            print("| view | CPU, % of a core | kB/s |\n|---|---|---|")
            for name in names:
                terminal.press(*VIEWS[name])
                _count_bytes(terminal, SETTLE_S)
                cpu, start = cpu_s(terminal.child.pid), time.monotonic()
                sent = _count_bytes(terminal, args.seconds)
                wall = time.monotonic() - start
                share = (cpu_s(terminal.child.pid) - cpu) / wall
                print(f"| {name} | {100 * share:.1f} | {sent / wall / 1000:.1f} |", flush=True)
                if name == "dialog":
                    terminal.press("escape")
                    _count_bytes(terminal, SETTLE_S)
            terminal.press("q")
            terminal.wait("stay")
            terminal.press("s")
            terminal.ended()
        finally:
            terminal.close()
    return 0


def _count_bytes(terminal: Terminal, seconds: float) -> int:
    """Read for some seconds and count the bytes. To emulate the screen as well would take a core."""
    end, count = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal.child.child_fd], [], [], left)[0]:
            count += len(os.read(terminal.child.child_fd, 1 << 16))
    return count


if __name__ == "__main__":
    sys.exit(main())
