"""Latency from a key to its answer on the screen, for a preset in a pty: `r` and `u` by turns.

The answer is there when the footer shows the new value of the residual knob.

    python benchmarks/preset_keys.py transformer-deep --presses 6
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from terminal import Terminal


def residual(text: str) -> str:
    """The value of the residual knob in the footer."""
    found = re.search(r"r residual (on|off)", text)
    return found[1] if found else ""


def main() -> None:
    """Print the milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="transformer-deep")
    parser.add_argument("--presses", type=int, default=6)
    args = parser.parse_args()
    seen: dict[str, list[float]] = {"r": [], "u": []}
    with tempfile.TemporaryDirectory(prefix="td") as home:
        command = [sys.executable, "-m", "tui_descent", args.name, "--steps", "100000"]
        terminal = Terminal(command, columns=120, rows=40, env=os.environ | {"TUI_DESCENT_HOME": home})
        terminal.wait(lambda text: "running" in text and residual(text) != "", within=180)
        terminal.child.delaybeforesend = None  # pexpect's own 50 ms
        for n in range(args.presses):
            key, before = "ru"[n % 2], residual(terminal.text())
            terminal.read(1.5)
            pressed_s = time.monotonic()
            terminal.press(key)
            while residual(terminal.text()) in (before, "") and time.monotonic() < pressed_s + 60:
                terminal.read(0.005)
            seen[key].append(1000 * (time.monotonic() - pressed_s))
        terminal.press("q")
        terminal.wait("stay")
        terminal.press("s")
        terminal.ended()
    for key, times in seen.items():
        print(f"{args.name}, {key} to its answer: median {statistics.median(times):.0f} ms, most {max(times):.0f}")


if __name__ == "__main__":
    main()
