"""Overhead of watching: a plain loop, the same loop watched with a real keeper, and two common alternatives.

The variants alternate in short slices of time. The ratio is the median over all rounds, each comparing slices that
ran next to one another: a machine that is slow for a while affects both. Its range is over ten parts of the run. Plain
and watched use one net, with the watch off and on. A/A compares it with another, equal net and shows the noise.
Readings per second are counted afterwards, in one continuous loop. With one CPU thread, times are CPU seconds of the
thread, which other programs on the machine disturb less.

    python benchmarks/overhead.py --workloads W1,W2 --seconds 60
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import workloads

from tui_descent import watch
from tui_descent.training.watch.watch import Watch

Step = Callable[[int], Tensor]
PARTS = 10
SLICE_S = 0.15
COUNTED_S = 5.0  # readings are counted for this long
# Steps before each slice that are not timed: switching hooks or nets is not part of the overhead.
SETTLING = 3


@dataclass
class Timed:
    """One variant and the seconds of each of its slices."""

    step: Step
    seconds: list[float] = field(default_factory=list)
    resume: Callable[[], None] = lambda: None  # called before a slice
    pause: Callable[[], None] = lambda: None  # called after a slice


@dataclass
class Readings:
    """Readings of the watched variant: how many per second, and the share of the time it declared for them."""

    per_second: float = 0.0
    declared: float = 0.0


def plain(work: workloads.Workload) -> Step:
    """The body of the plain loop. It also reads the loss, as any loop with a progress line does."""

    def step(n: int) -> Tensor:
        x, y = work.batches[n % len(work.batches)]
        loss = work.loss_function(work.model(x), y)
        work.optimizer.zero_grad()
        loss.backward()
        work.optimizer.step()
        loss.item()
        return loss

    return step


def norm_loop(work: workloads.Workload) -> Step:
    """Alternative: `.norm().item()` of every activation (by forward hooks), parameter and gradient, at every step."""
    found: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[name] = output.detach().norm().item()

        return look

    for name, module in work.model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(hook(name))
    body = plain(work)

    def step(n: int) -> Tensor:
        loss = body(n)
        for name, parameter in work.model.named_parameters():
            found[f"w.{name}"] = parameter.detach().norm().item()
            if parameter.grad is not None:
                found[f"g.{name}"] = parameter.grad.norm().item()
        return loss

    return step


def histograms(work: workloads.Workload, folder: str) -> Step:
    """Alternative: TensorBoard with the loss at every step, and histograms of weights and gradients every 100 steps."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    body = plain(work)

    def step(n: int) -> Tensor:
        loss = body(n)
        writer.add_scalar("loss", loss.item(), n)
        if n % 100 == 0:
            for name, parameter in work.model.named_parameters():
                writer.add_histogram(f"w.{name}", parameter, n)
                if parameter.grad is not None:
                    writer.add_histogram(f"g.{name}", parameter.grad, n)
        return loss

    return step


def run_slice(step: Step, first: int, count: int, device: str) -> float:
    """Seconds of `count` steps."""
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start_s = clock()
    for n in range(first, first + count):
        step(n)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start_s


def measure(
    name: str, *, seconds: float, device: str, fused: bool, beside: bool, folder: str
) -> tuple[dict[str, Timed], Readings]:
    """Time all variants with the same number of steps, about `seconds` for the fastest one."""
    work = workloads.make(name, device, fused=fused)
    readings = Readings()
    with watch(work.model, work.optimizer, name=f"overhead-{name}") as run:
        body = plain(work)

        def watched(n: int) -> Tensor:
            loss = body(n)
            run.step(loss)
            return loss

        def off() -> None:
            run._hooks.detach()

        def on() -> None:
            run._hooks.attach()
            run._timer.restart()

        # The same net with and without the watch: two equal nets differ by up to 1%, depending on memory addresses.
        variants = {
            "plain": Timed(body, resume=off),
            "watched": Timed(watched, resume=on, pause=off),
            "plain again": Timed(plain(workloads.make(name, device, fused=fused))),
        }
        if beside:
            variants["norm loop"] = Timed(norm_loop(workloads.make(name, device, fused=fused)))
            if importlib.util.find_spec("tensorboard"):
                variants["histograms"] = Timed(histograms(workloads.make(name, device, fused=fused), folder))
        step_s = min(run_slice(v.step, 0, 20, device) for v in variants.values()) / 20
        count = max(1, round(SLICE_S / step_s))
        # Warm up: the first readings exceed the budget.
        on()
        run_slice(watched, 20, max(20, int(3 / step_s)), device)
        order, rounds = list(variants), max(PARTS, int(seconds / (count * step_s)))
        for n in range(rounds):
            first = n % len(order)
            for variant in order[first:] + order[:first]:
                timed = variants[variant]
                timed.resume()
                run_slice(timed.step, 100_000 + n * count, SETTLING, device)
                timed.seconds.append(run_slice(timed.step, 100_000 + n * count + SETTLING, count, device))
                timed.pause()
        on()
        run_slice(watched, 200_000, count, device)
        # In a continuous loop: each pause between two slices discards the time of its last steps.
        cost, time_s = run.cost, run._sampler.time_s
        readings.per_second = reading_rate(run, watched, max(20, int(COUNTED_S / step_s)))
        readings.declared = (run.cost * run._sampler.time_s - cost * time_s) / (run._sampler.time_s - time_s)
    return variants, readings


def reading_rate(run: Watch, watched: Step, steps: int) -> float:
    """Readings per second in a continuous loop."""
    assert run.progress.link is not None
    assert run.progress.link.ring is not None
    ring, write, taken = run.progress.link.ring, run.progress.link.ring.write_reading, 0

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal taken
        taken += 1
        write(*args, **kwargs)

    ring.write_reading = counted  # type: ignore[method-assign]
    start_s = time.perf_counter()
    for n in range(300_000, 300_000 + steps):
        watched(n)
    return taken / (time.perf_counter() - start_s)


def ratio(variants: dict[str, Timed], name: str) -> str:
    """The median of `ratios`, with the third lowest and third highest of ten parts of the run."""
    rounds = ratios(variants, name)
    size = len(rounds) // PARTS
    parts = sorted(statistics.median(rounds[k * size : (k + 1) * size]) for k in range(PARTS))
    return f"{statistics.median(rounds):.3f} [{parts[2]:.3f} … {parts[-3]:.3f}]"


def ratios(variants: dict[str, Timed], name: str) -> list[float]:
    """Plain time divided by the variant's time, in each round."""
    pairs = zip(variants["plain"].seconds, variants[name].seconds, strict=True)
    return [plain_s / variant_s for plain_s, variant_s in pairs]


def row(name: str, variants: dict[str, Timed], readings: Readings, *, fused: bool) -> str:
    """One line of the table."""
    cells = [f"{name} {'fused' if fused else 'default'}", workloads.TITLES[name]]
    cells += [ratio(variants, v) if v in variants else "–" for v in ("plain again", "watched")]
    cost = 1 - statistics.median(ratios(variants, "watched"))
    cells += [f"{cost:.4f}", f"{readings.declared:.4f}", f"{readings.per_second:.1f}"]
    cells += [ratio(variants, v) if v in variants else "–" for v in ("norm loop", "histograms")]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| | workload | A/A | watched | measured cost | declared | readings/s | norm loop | TensorBoard |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="W1,W2,W3,W4")
    parser.add_argument("--seconds", type=float, default=30, help="for each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizers", choices=("default", "fused", "both"), default="both")
    parser.add_argument("--alone", action="store_true", help="leave out the norm loop and TensorBoard")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.seconds:g} s per variant")
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        for name in args.workloads.split(","):
            for fused in {"default": (False,), "fused": (True,), "both": (False, True)}[args.optimizers]:
                variants, readings = measure(
                    name,
                    seconds=args.seconds,
                    device=args.device,
                    fused=fused,
                    beside=not args.alone,
                    folder=f"{home}/{name}-{fused}",
                )
                print(row(name, variants, readings, fused=fused), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
