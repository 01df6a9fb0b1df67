"""Latency from a key to its effect, for the real program in a pty with a user loop at full speed.

`+` and `-` are pressed alternately. The loop records when a command has arrived and when it is carried out; all
processes share one clock. The screen shows the effect when the new learning rate can be read there. Printed are the
milliseconds from the key press to the change, and to the screen, and the number of updates that a command had to
wait.

    python benchmarks/key_to_applied.py --presses 30
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from terminal import Terminal

LOOP = """
import json, select, sys, time
sys.path.insert(0, {here!r})
import torch
import workloads
from tui_descent import watch

torch.set_num_threads(1)
work = workloads.make({workload!r}, "cpu", fused=False)
with watch(work.model, work.optimizer, name="keys") as run, open({log!r}, "w", buffering=1) as log:
    carry_out, arrived = run.control.carry_out, [None]

    def noted(batch):
        carry_out(batch)
        print(json.dumps([time.monotonic(), run.next_step, arrived[0]]), file=log)
        arrived[0] = None

    run.control.carry_out = noted
    line = run.progress.link._peer.socket
    n = 0
    while True:
        x, y = work.batches[n % len(work.batches)]
        loss = work.loss_function(work.model(x), y)
        work.optimizer.zero_grad()
        loss.backward()
        work.optimizer.step()
        n += 1
        if arrived[0] is None and select.select([line], [], [], 0)[0]:
            arrived[0] = run.next_step + 1  # the update before which commands are read next
        run.step(loss)
"""


def rate(text: str) -> str:
    """The learning rate on screen."""
    found = re.search(r"rate ([\d.e-]+)", text)
    return found[1] if found else ""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=30)
    parser.add_argument("--workload", default="W1")
    parser.add_argument("--every", type=float, default=0.35, help="least seconds between two presses")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="td") as home:
        script, log = Path(home) / "loop.py", Path(home) / "log"
        here = str(Path(__file__).resolve().parent)
        script.write_text(LOOP.format(here=here, workload=args.workload, log=str(log)))
        command = [sys.executable, "-m", "tui_descent", "exec", "--", sys.executable, str(script)]
        terminal = Terminal(command, columns=120, rows=40, env=os.environ | {"TUI_DESCENT_HOME": home})
        terminal.wait(lambda text: "running" in text and rate(text) != "")
        terminal.child.delaybeforesend = None  # pexpect's own 50 ms
        end_s = time.monotonic() + 2
        terminal.wait(lambda _: time.monotonic() > end_s)
        pressed, shown = [], []
        for n in range(args.presses):
            before = rate(terminal.text())
            pressed.append(time.monotonic())
            terminal.press("-" if n % 2 else "+")
            while rate(terminal.text()) in (before, ""):
                terminal.read(0.002)
                assert time.monotonic() < pressed[-1] + 20, terminal.text()
            shown.append(time.monotonic())
            terminal.read(max(0.0, pressed[-1] + args.every - time.monotonic()))
        terminal.press("q")
        terminal.wait("stay")
        terminal.press("s")
        terminal.ended()
        turns = [json.loads(line) for line in log.read_text().splitlines()][: args.presses]
    applied = [1000 * (turn[0] - at) for turn, at in zip(turns, pressed, strict=True)]
    seen = [1000 * (a - b) for a, b in zip(shown, pressed, strict=True)]
    waited = [0 if first is None else step - first for _, step, first in turns]
    print(f"| {args.presses} presses, {args.workload} | median | max |\n|---|---|---|")
    for title, found, form in (
        ("key to change, ms", applied, ".1f"),
        ("key to the new rate on screen, ms", seen, ".1f"),
        ("updates the command waited", waited, "g"),
    ):
        print(f"| {title} | {statistics.median(found):{form}} | {max(found):{form}} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
