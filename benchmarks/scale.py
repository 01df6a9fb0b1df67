"""Memory and time for large nets and long runs: a thousand layers, ten million steps.

The net is trained in separate processes, once plain and once watched; each reports its peak resident memory. The
history is filled in this process, as the keeper does it. Limits: 64 MB more for the watched trainer, 32 MB for the
history, and the last steps are added as fast as the first.

    python benchmarks/scale.py --layers 1000 --train 300 --steps 10000000
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from typing import Any

from tui_descent.protocol.events import Layer, ReadingsTaken, RunStarted, StepsCompleted
from tui_descent.telemetry.history import History

CHUNK = 1000
WIDTH = 16
MB = 1e6


def train(layers: int, steps: int, *, watched: bool) -> dict[str, float]:
    """Train a ReLU MLP with `layers` hidden layers of 16; returns peak memory, time per step and declared cost."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from tui_descent import watch
    from tui_descent.training.device_memory import resident_bytes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    net = nn.Sequential(*parts, nn.Linear(WIDTH, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    x, y = torch.randn(64, WIDTH), torch.randint(0, 10, (64,))

    def step() -> torch.Tensor:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    result: dict[str, float] = {}
    start_s = time.thread_time()
    if watched:
        with watch(net, optimizer, name="scale") as run:
            for _ in range(steps):
                run.step(step())
            result["watch_cost"] = run.cost
    else:
        for _ in range(steps):
            step().item()
    result["step_ms"] = 1e3 * (time.thread_time() - start_s) / steps
    result["peak_bytes"] = resident_bytes()[1] or 0
    return result


def in_a_process(layers: int, steps: int, *, watched: bool) -> dict[str, float]:
    """Call `train` in a new process."""
    words = [sys.executable, __file__, "--layers", str(layers), "--train", str(steps)]
    done = subprocess.run(
        [*words, "--here", "watched" if watched else "plain"], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def feed(steps: int, *, layers: int, every: int = 100, traced: bool = True) -> dict[str, float]:
    """Fill a history with `steps` steps and a reading of `layers` layers at every `every`-th.

    Returns the time per step at the beginning and at the end and, with `traced`, the memory that Python has allocated.
    Tracing slows the code down, so measure the times without it.
    """
    gc.collect()
    if traced:
        tracemalloc.start()
    history = History()
    history.apply(_started(layers))
    ends: list[float] = []
    count = max(1, min(100_000, steps // 3) // CHUNK)
    chunks = steps // CHUNK
    start_s = time.perf_counter()
    for n in range(chunks):
        if n in (0, chunks - count):
            start_s = time.perf_counter()
        _chunk(history, n * CHUNK, layers, every)
        if n in (count - 1, chunks - 1):
            ends.append((time.perf_counter() - start_s) / (count * CHUNK))
    result = {"first_us": 1e6 * ends[0], "last_us": 1e6 * ends[1]}
    if traced:
        gc.collect()
        result["bytes"], result["peak_bytes"] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return result


def _chunk(history: History, first: int, layers: int, every: int) -> None:
    losses = [2.0 + (step * 2_654_435_761 % 1000) / 1000 for step in range(first, first + CHUNK)]
    times = [step * 1e-3 for step in range(first, first + CHUNK)]
    history.apply(StepsCompleted(segment=0, first=first, losses=losses, lrs=[0.1] * CHUNK, times_s=times))
    for step in range(first, first + CHUNK, every):
        row: list[float | None] = [1e-3 * (1 + (step + n) % 7) for n in range(layers)]
        history.apply(
            ReadingsTaken(
                segment=0,
                step=step,
                values={"grad_norm": row, "grad_rms": row},
                ages=[0] * layers,
                global_grad_norm=1.0,
                watch_cost=0.01,
            )
        )


def _started(layers: int) -> RunStarted:
    return RunStarted(
        run="r",
        title="t",
        name="n",
        scenario=None,
        device="cpu",
        threads=1,
        parameters=1,
        layers=tuple(Layer(name=f"blocks.{n}", kind="Linear", params=1, block=n) for n in range(layers)),
        knobs=(),
    )


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--train", type=int, default=300, help="training steps")
    parser.add_argument("--steps", type=int, default=10_000_000, help="steps added to the history")
    parser.add_argument("--here", choices=["plain", "watched"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(train(args.layers, args.train, watched=args.here == "watched")))
        return 0
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        plain = in_a_process(args.layers, args.train, watched=False)
        watched = in_a_process(args.layers, args.train, watched=True)
    print(f"trainer, {args.layers:,} layers of {WIDTH}, {args.train:,} steps   peak memory   step, CPU   declared cost")
    for name, result in (("plain", plain), ("watched", watched)):
        cost = f"{result['watch_cost']:.2%}" if "watch_cost" in result else ""
        print(f"  {name:<10}{result['peak_bytes'] / MB:8.1f} MB  {result['step_ms']:8.2f} ms  {cost}")
    print(f"  difference{(watched['peak_bytes'] - plain['peak_bytes']) / MB:8.1f} MB")
    print(f"history, {args.steps:,} steps            memory    peak    first steps   last steps")
    for layers in (30, args.layers):
        memory: dict[str, Any] = feed(args.steps, layers=layers, every=100 if layers <= 100 else 1000)
        speed = feed(args.steps, layers=layers, every=100 if layers <= 100 else 1000, traced=False)
        print(
            f"  {layers:,} layers  {memory['bytes'] / MB:6.1f} MB  {memory['peak_bytes'] / MB:6.1f} MB"
            f"  {speed['first_us']:.2f} µs  {speed['last_us']:.2f} µs",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
