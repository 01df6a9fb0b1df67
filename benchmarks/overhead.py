"""What watching costs: a plain loop against the same loop watched, with a real keeper, and against two usual ways.

The variants run in short turns, over and over, so a machine that slows down slows all alike; the ratio is that of their
whole times, its range that of ten parts of the run. Plain and watched are one net, with the watch off and on; another,
equal net against it (A/A) shows what 1 looks like. Readings are counted behind the turns, in a loop that goes on. On
one CPU thread the seconds are the thread's own CPU seconds, which other programs on the machine disturb less.

    python benchmarks/overhead.py --workloads W1,W2 --seconds 60
"""

from __future__ import annotations

import argparse
import importlib.util
import os
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
from tui_descent.training.watch import Watch

Step = Callable[[int], Tensor]
PARTS = 10
TURN_S = 0.5
COUNTED_S = 5.0  # how long readings are counted
# Steps before each turn that are not timed: to switch hooks on and off, or nets, is not what watching costs.
SETTLING = 3


@dataclass
class Timed:
    """One variant's seconds, turn by turn."""

    step: Step
    seconds: list[float] = field(default_factory=list)
    resume: Callable[[], None] = lambda: None  # before a turn
    pause: Callable[[], None] = lambda: None  # after it


@dataclass
class Readings:
    """What the watched variant saw meanwhile."""

    a_second: float = 0.0
    declared: float = 0.0


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


def norm_loop(work: workloads.Workload) -> Step:
    """Activations' norms by forward hooks, every parameter's and gradient's by `.norm().item()`, at every step."""
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
    """TensorBoard: the loss at every step, histograms of weights and gradients at every hundredth."""
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


def turn(step: Step, first: int, count: int, device: str) -> float:
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
    """Each variant's turns, `seconds` of them together for each but the slow ones, which get fewer."""
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

        # One net, watched in one turn and not in the next: two equal nets differ by a percent by where they lie.
        variants = {
            "plain": Timed(body, resume=off),
            "watched": Timed(watched, resume=on, pause=off),
            "plain again": Timed(plain(workloads.make(name, device, fused=fused))),
        }
        if beside:
            variants["norm loop"] = Timed(norm_loop(workloads.make(name, device, fused=fused)))
            if importlib.util.find_spec("tensorboard"):
                variants["histograms"] = Timed(histograms(workloads.make(name, device, fused=fused), folder))
        step_s = min(turn(v.step, 0, 20, device) for v in variants.values()) / 20
        count = max(1, round(TURN_S / step_s))
        # The first readings are taken on credit; that is over before the clock runs.
        on()
        turn(watched, 20, max(20, int(3 / step_s)), device)
        before = run.cost, run._sampler.time_s
        order, rounds = list(variants), max(PARTS, int(seconds / (count * step_s)))
        for n in range(rounds):
            first = n % len(order)
            for variant in order[first:] + order[:first]:
                timed = variants[variant]
                timed.resume()
                turn(timed.step, 100_000 + n * count, SETTLING, device)
                timed.seconds.append(turn(timed.step, 100_000 + n * count + SETTLING, count, device))
                timed.pause()
        on()
        time_s = run._sampler.time_s
        readings.declared = (run.cost * time_s - before[0] * before[1]) / (time_s - before[1])
        turn(watched, 200_000, count, device)
        readings.a_second = rate(run, watched, max(20, int(COUNTED_S / step_s)))
    return variants, readings


def rate(run: Watch, watched: Step, steps: int) -> float:
    """Readings a second of a loop that goes on and on."""
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
    """Plain time over the variant's, and its range over ten parts of the run."""
    base = variants["plain"].seconds
    own = variants[name].seconds
    size = len(own) // PARTS
    parts = sorted(sum(base[k * size : (k + 1) * size]) / sum(own[k * size : (k + 1) * size]) for k in range(PARTS))
    return f"{sum(base) / sum(own):.3f} [{parts[2]:.3f} … {parts[-3]:.3f}]"


def row(name: str, variants: dict[str, Timed], readings: Readings, *, fused: bool) -> str:
    """One line of the table."""
    own_s = sum(variants["watched"].seconds)
    plain_s = sum(variants["plain"].seconds)
    cells = [f"{name} {'fused' if fused else 'default'}", workloads.TITLES[name]]
    cells += [ratio(variants, v) if v in variants else "–" for v in ("plain again", "watched")]
    cells += [f"{1 - plain_s / own_s:.4f}", f"{readings.declared:.4f}", f"{readings.a_second:.1f}"]
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
    parser.add_argument("--seconds", type=float, default=30, help="of each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizers", choices=("default", "fused", "both"), default="both")
    parser.add_argument("--alone", action="store_true", help="without the norm loop and TensorBoard")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.seconds:g} s a variant")
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
