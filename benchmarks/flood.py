"""Training speed while a client sends a flood of commands, relative to no commands.

A real keeper and trainer run at full speed, with this program as their client. Slices of time with and without
commands alternate, so that a machine that slows down affects all. Steps per second are measured by the trainer's
clock.

    python benchmarks/flood.py --seconds 60
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from attended import Attended, Reply, Viewer

from tui_descent.protocol.codec import frame
from tui_descent.protocol.commands import Request, Stop, TurnKnob
from tui_descent.protocol.events import KnobTurned, StepsCompleted

SLICE_S = 3.0
TICK_S = 0.01
Flood = Callable[[int], list[TurnKnob]]
UP, DOWN = "*1.25", "/1.25"


def relative(tick: int) -> list[TurnKnob]:
    """200 relative changes per second."""
    return [TurnKnob(knob="lr", value=value) for value in (UP, DOWN)]


def exact(tick: int) -> list[TurnKnob]:
    """200 exact values per second."""
    return [TurnKnob(knob="lr", value=value) for value in ("0.1", "0.11")]


def burst(tick: int) -> list[TurnKnob]:
    """1,000 commands in one write, once per slice."""
    return [TurnKnob(knob="lr", value=value) for value in (UP, DOWN) * 500] if tick == 10 else []


def nothing(tick: int) -> list[TurnKnob]:
    """No commands."""
    return []


class Client:
    """Sends commands; `asked` counts them."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.asked = 0

    def run_slice(self, flood: Flood) -> float:
        """Send commands for one slice of time; returns the steps per second by the trainer's clock."""
        viewer = self.viewer
        viewer.heard.clear()
        viewer._looked = 0
        start_s = time.monotonic()
        for tick in range(round(SLICE_S / TICK_S)):
            body = b""
            for command in flood(tick):
                self.asked += 1
                body += frame(Request(request=self.asked, command=command, source="send"))
            if body:
                viewer.peer.socket.setblocking(True)
                viewer.peer.socket.sendall(body)
                viewer.peer.socket.setblocking(False)
            viewer._take()
            time.sleep(max(0.0, start_s + (tick + 1) * TICK_S - time.monotonic()))
        steps = viewer.events(StepsCompleted)
        first, last = steps[1], steps[-1]  # steps[0] includes steps of the slice before
        return (last.first + len(last.losses) - first.first) / (last.times_s[-1] - first.times_s[0])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--preset", default="healthy")
    args = parser.parse_args()
    floods: tuple[Flood, ...] = (nothing, relative, exact, burst, nothing)
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        run = Attended(args.preset, "run.steps=10000000")
        client = Client(run.viewer())
        client.viewer.until_step(500)
        names = [
            "none",
            "200 factors per second",
            "200 values per second",
            "1,000 in one write, every 3 s",
            "none (A/A)",
        ]
        speeds: dict[str, list[float]] = {name: [] for name in names}
        counts: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for n in range(max(2, int(args.seconds / SLICE_S / len(floods)))):
            order = list(zip(names, floods, strict=True))
            for name, flood in order[n % len(order) :] + order[: n % len(order)]:
                before = client.asked
                speeds[name].append(client.run_slice(flood))
                heard = [m for m in client.viewer.heard if isinstance(m, Reply)]
                turned = sum(isinstance(m, KnobTurned) for m in heard)
                counts[name].append((client.asked - before, turned))
        print("| commands | steps/s | relative | sent | interventions |\n|---|---|---|---|---|")
        base = sum(speeds["none"])
        for name in names:
            asked, turned = (sum(c[k] for c in counts[name]) for k in (0, 1))
            mean = sum(speeds[name]) / len(speeds[name])
            print(f"| {name} | {mean:,.0f} | {sum(speeds[name]) / base:.3f} | {asked:,} | {turned:,} |")
        client.viewer.do(Stop())
        run.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
