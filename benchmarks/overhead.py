"""What watching costs: steps a second of a plain loop against the same loop watched, with a real keeper.

The variants run in turns, a stretch of steps each, and every round gives one ratio, so a machine that slows down slows
all alike. `plain again` against `plain` (A/A) shows what a ratio of 1 looks like here. On one CPU thread the seconds
are the thread's own CPU seconds, which other programs on the machine disturb less; otherwise they are the clock's.

    python benchmarks/overhead.py --workloads W1,W2 --rounds 15
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import workloads

from tui_descent import watch

Step = Callable[[int], Tensor]


def plain(work: workloads.Workload) -> Step:
    """The loop's body, which also reads its loss: any loop that shows a progress line does."""

    def step(n: int) -> Tensor:
        x, y = work.batches[n % len(work.batches)]
        loss = work.loss_function(work.model(x), y)
        work.optimizer.zero_grad()
        loss.backward()
        work.optimizer.step()
        loss.item()
        return loss

    return step


def stretch(step: Step, first: int, count: int, device: str) -> float:
    """Seconds of `count` steps."""
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start_s = clock()
    for n in range(first, first + count):
        step(n)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start_s


def measure(name: str, *, rounds: int, stretch_s: float, device: str, fused: bool) -> dict[str, list[float]]:
    """Steps a second, round by round, of each variant."""
    watched = workloads.make(name, device, fused=fused)
    with watch(watched.model, watched.optimizer, name=f"overhead-{name}") as run:
        body = plain(watched)

        def watched_step(n: int) -> Tensor:
            loss = body(n)
            run.step(loss)
            return loss

        variants: dict[str, Step] = {
            "plain": plain(workloads.make(name, device, fused=fused)),
            "watched": watched_step,
            "plain again": plain(workloads.make(name, device, fused=fused)),
        }
        warm = max(stretch(step, 0, 20, device) for step in variants.values()) / 20
        count = max(5, int(stretch_s / warm))
        rates: dict[str, list[float]] = {v: [] for v in variants}
        order = list(variants)
        for turn in range(rounds):
            for variant in order[turn % 3 :] + order[: turn % 3]:
                rates[variant].append(count / stretch(variants[variant], 20 + turn * count, count, device))
    return rates


def row(name: str, rates: dict[str, list[float]]) -> str:
    """One line of the table."""
    cells = [f"{name}  {workloads.TITLES[name]:<50}", f"{statistics.median(rates['plain']):8.1f}"]
    for variant in ("plain again", "watched"):
        ratios = sorted(a / b for a, b in zip(rates[variant], rates["plain"], strict=True))
        quarter = len(ratios) // 4
        cells.append(f"{statistics.median(ratios):.3f} [{ratios[quarter]:.3f} … {ratios[-1 - quarter]:.3f}]")
    return "  ".join(cells)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="W1,W2,W3,W4")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--stretch", type=float, default=0.5, help="seconds a stretch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fused", action="store_true", help="fused optimizers in all variants")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, fused={args.fused}, {args.rounds} rounds")
    print(f"{'workload':<54}  {'steps/s':>8}  A/A ratio [quartiles]   watched / plain [quartiles]")
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        for name in args.workloads.split(","):
            rates = measure(name, rounds=args.rounds, stretch_s=args.stretch, device=args.device, fused=args.fused)
            print(row(name, rates), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
