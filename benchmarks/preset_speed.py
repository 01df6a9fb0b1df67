"""How fast a preset runs: its steps a second divided by those of a plain loop with the same net, data and optimizer.

Both are threads of this process and make TURN steps by turns, so each step is compared with the same step of the other
loop, a moment apart. That matters twice: some steps cost more than others in both loops (numbers near the smallest
float are slow), and other programs on the machine then disturb both alike. Each loop's time is counted on the CPU of
its own thread and on the clock.

The run is headless, with readings and evaluations as a user has them; the plain loop only reads the loss. The first
steps are shown apart, because there readings are dense.

    python benchmarks/preset_speed.py transformer --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from tui_descent import headless, paths
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import presets
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import to_table
from tui_descent.trainer_thread import TrainerThread
from tui_descent.training import scenario_run
from tui_descent.training.loop import train
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import Setup, build

TURN = 10  # steps
BLOCK = 100  # steps; a ratio is that of the sums over a block
START = 200  # the steps that are shown apart
WARM_UP = 20  # steps of another net before the first turn


class Turns:
    """The turns of one loop: waits for each, and keeps its CPU seconds and its seconds on the clock."""

    def __init__(self) -> None:
        self.mine = threading.Semaphore(0)
        self.cpu_s: list[float] = []
        self.clock_s: list[float] = []
        self._other: Turns = self
        self._began: tuple[float, float] | None = None
        self._steps = 0

    def alternate_with(self, other: Turns) -> None:
        """Take turns with `other`. Call it before the loops start."""
        self._other, other._other = other, self

    def step(self) -> None:
        """Call this before each step, in the loop's own thread."""
        if self._steps % TURN == 0:
            self.end()
            self.mine.acquire()
            self._began = time.thread_time(), time.perf_counter()
        self._steps += 1

    def end(self) -> None:
        """End the turn, after the last step too."""
        if self._began is not None:
            self.cpu_s.append(time.thread_time() - self._began[0])
            self.clock_s.append(time.perf_counter() - self._began[1])
            self._began = None
            self._other.mine.release()


class TimedSetup:
    """A run's `Setup` that waits for its turn before a loss."""

    def __init__(self, setup: Setup, turns: Turns) -> None:
        self._setup, self._turns = setup, turns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._setup, name)

    def loss(self) -> torch.Tensor:
        """The loss of the next batch."""
        self._turns.step()
        return self._setup.loss()


def plain_loop(setup: Setup, steps: int, turns: Turns | None = None) -> None:
    """A plain loop that reads the loss, as a loop with a progress line does."""
    for _ in range(steps):
        if turns is not None:
            turns.step()
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
        loss.item()
    if turns is not None:
        turns.end()


def measure(name: str, scenario: Scenario) -> tuple[Turns, Turns, list[float]]:
    """The turns of the plain loop and of the run, of all steps of `scenario`, and the CPU seconds of evaluations."""
    plain, ours = Turns(), Turns()
    evaluations_s: list[float] = []
    plain.alternate_with(ours)
    device = torch.device("cpu")

    def plain_thread() -> None:
        plain_loop(build(scenario, on=device), WARM_UP)
        plain_loop(build(scenario, on=device), scenario.run.steps, plain)

    def timed_train(run: Any, setup: Setup, **options: Any) -> None:
        try:
            train(run, TimedSetup(setup, ours), **options)  # type: ignore[arg-type]
        finally:
            ours.end()

    def timed_evaluate(setup: Setup) -> tuple[float, float | None]:
        start_s = time.thread_time()
        found = evaluate(setup)
        evaluations_s.append(time.thread_time() - start_s)
        return found

    scenario_run.train, scenario_run.evaluate = timed_train, timed_evaluate  # type: ignore[attr-defined]
    run_id, folder = paths.new_run(name)
    launch = Launch(run=run_id, name=name, folder=str(folder), socket=None, scenario=to_table(scenario))
    launch.write()
    thread = threading.Thread(target=plain_thread, daemon=True)
    thread.start()
    plain.mine.release()
    headless.run(launch, listen=lambda _: None, start=TrainerThread.start)
    if not len(plain.cpu_s) == len(ours.cpu_s) == -(-scenario.run.steps // TURN):
        raise SystemExit(f"{name}: the run ended early, after {len(ours.cpu_s) * TURN} steps")
    return plain, ours, evaluations_s[:-1]  # the last one is made after the last turn


def ratios(plain: Sequence[float], ours: Sequence[float], turns: int) -> list[float]:
    """Plain time divided by ours, for each block of `turns` turns."""
    return [sum(plain[at : at + turns]) / sum(ours[at : at + turns]) for at in range(0, len(ours) - turns + 1, turns)]


def shown(values: Sequence[float]) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="transformer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700, help=f"of each run; more than {START}, a multiple of {BLOCK}")
    args = parser.parse_args()
    if args.steps <= START or args.steps % BLOCK:
        parser.error(f"--steps must be more than {START} and a multiple of {BLOCK}")
    torch.set_num_threads(1)
    _, scenario = presets.find(args.name, overrides=[f"run.steps={args.steps}"])
    whole: dict[str, list[float]] = {"CPU": [], "clock": []}
    first: dict[str, list[float]] = {"CPU": [], "clock": []}
    later: dict[str, list[float]] = {"CPU": [], "clock": []}
    steps_s: list[float] = []
    evaluating: list[float] = []
    with tempfile.TemporaryDirectory(prefix="td") as home:
        os.environ["TUI_DESCENT_HOME"] = home
        for _ in range(args.rounds):
            plain, ours, evaluations_s = measure(args.name, scenario)
            for kind, a, b in (("CPU", plain.cpu_s, ours.cpu_s), ("clock", plain.clock_s, ours.clock_s)):
                start = START // TURN
                whole[kind] += ratios(a, b, len(b))
                first[kind] += ratios(a[:start], b[:start], start)
                later[kind] += ratios(a[start:], b[start:], BLOCK // TURN)
            steps_s.append(sum(plain.cpu_s) / args.steps)
            evaluating.append(sum(evaluations_s) / sum(ours.cpu_s))
    step_ms = 1e3 * statistics.median(steps_s)
    print(f"{args.name}: a plain step takes {step_ms:.2f} ms; the run's speed divided by that of a plain loop:")
    for kind in whole:
        print(f"  {kind:5}  whole run {shown(whole[kind])}, first {START} steps {shown(first[kind])}, ", end="")
        print(f"later {shown(later[kind])}")
    print(f"  evaluations, which the plain loop leaves out, take {statistics.median(evaluating):.1%} of the run")


if __name__ == "__main__":
    main()
