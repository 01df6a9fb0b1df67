"""What recording costs: CPU seconds of trainer and keeper, bytes per hour, and how fast a long record opens.

- `cost`: a run of W1 (30 hidden layers of 64) with a keeper in this process, which records or does not, by turns. The
  trainer's CPU seconds per step are read from the system.
- `size`: an hour of events of a net with 60 layers, ten readings a second, written without waiting.
- `open`: a record of a million steps, opened in a process of its own as `replay` opens it.

    python benchmarks/record.py cost --pairs 6
    python benchmarks/record.py size open
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from factories import ledger, reading, started, steps

from tui_descent import paths
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.events import AnyEvent, DeviceTaken, Evaluated, StepsCompleted
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import RECORD_FILE, Record, RecordWriter
from tui_descent.telemetry.record import writer as writing
from tui_descent.telemetry.record.byte_rate import ByteRate

W1 = ("model.depth=30", "model.width=64", "data.batch_size=64", 'optimizer.name="sgd"', "run.threads=1")
WARM_UP = 300  # steps that are not counted
HOUR_S = 3600
OPENING = """
import json, random, resource, sys, time
from pathlib import Path
import tui_descent.dashboard.replay
from tui_descent.telemetry.record import Record
from tui_descent.telemetry.record.player import Player
begun = time.perf_counter()
record = Record.open(Path(sys.argv[1]))
player = Player(record)
opened = time.perf_counter() - begun
jumps, steps = [], []
for position in random.Random(1).choices(range(player.total), k=20):
    begun = time.perf_counter()
    player.seek(position)
    jumps.append(time.perf_counter() - begun)
    for _ in range(5):  # the key ←
        begun = time.perf_counter()
        player.seek(player.position - player.total // 100)
        steps.append(time.perf_counter() - begun)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
found = {"steps": player.total, "opened_s": opened, "jumps_s": sorted(jumps), "back_s": sorted(steps), "peak": peak}
print(json.dumps(found))
"""


def cpu_s(pid: int) -> float:
    """The CPU seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_run(count: int, *, record: bool) -> tuple[float, float]:
    """A run of W1; returns the CPU microseconds per step of the trainer and of the keeper."""
    _, scenario = presets.find("healthy", overrides=[*W1, f"run.steps={count + WARM_UP}"])
    run, folder = paths.new_run("record")
    launch = Launch(run=run, name="record", folder=str(folder), socket=None, scenario=to_table(scenario))
    launch.write()
    begun: tuple[int, float, float] | None = None
    ended = begun

    def listen(event: AnyEvent) -> None:
        nonlocal begun, ended
        if isinstance(event, StepsCompleted):
            step = event.first + len(event.losses)
            assert trainer is not None
            assert trainer.process is not None
            if begun is None and step >= WARM_UP:
                begun = step, cpu_s(trainer.process.pid), time.process_time()
            if step < count + WARM_UP:  # the last evaluation is not a step
                ended = step, cpu_s(trainer.process.pid), time.process_time()

    trainer: Trainer | None = None

    def start() -> Trainer:
        nonlocal trainer
        trainer = Trainer.start(launch)
        return trainer

    Keeper(launch, on_event=listen, record=record).run(start)
    assert begun is not None
    assert ended is not None
    made = ended[0] - begun[0]
    return (ended[1] - begun[1]) / made * 1e6, (ended[2] - begun[2]) / made * 1e6


def cost(pairs: int, count: int) -> None:
    """Print the costs with and without a record, and the ratio of each pair."""
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(pairs):
        for record in (False, True) if number % 2 else (True, False):
            found[record].append(one_run(count, record=record))
    ratios = [on[0] / off[0] for off, on in zip(found[False], found[True], strict=True)]
    for record, name in ((False, "not recorded"), (True, "recorded")):
        trainer, keeper = (statistics.median(values) for values in zip(*found[record], strict=True))
        print(f"{name:<13} trainer {trainer:8.1f} µs/step   keeper {keeper:6.1f} µs/step (CPU)")
    print(
        f"trainer, recorded / not recorded: median {statistics.median(ratios):.4f} "
        f"(pairs: {', '.join(f'{ratio:.4f}' for ratio in sorted(ratios))})"
    )


def hour_of_events(layers: int, per_s: float, seconds: int) -> Iterator[tuple[float, AnyEvent]]:
    """What such a net reports, each event with its time."""
    noise = random.Random(1)
    yield 0.0, started(layers - 2)
    step = 0
    for tenth in range(seconds * 10):
        now_s, until = tenth / 10, int((tenth + 1) / 10 * per_s)
        losses = array("f", [noise.uniform(0.1, 2.0) for _ in range(until - step)]).tolist()
        yield now_s, steps(step, losses, per_s=per_s)
        step = until
        made = reading(step - 1, noise.uniform(0.5, 1.0), layers - 2)
        values = {name: [v and v * noise.uniform(0.9, 1.1) for v in column] for name, column in made.values.items()}
        for more in ("grad_cosine", "dead_fraction", "activation_mean", "activation_std"):
            values[more] = [noise.uniform(-1, 1) for _ in range(layers)]
        yield (
            now_s,
            type(made)(step=step - 1, segment=0, values=values, ages=made.ages, global_grad_norm=1.0, watch_cost=0.01),
        )
        if tenth % 10 == 0:
            yield now_s, ledger(step - 1, noise.uniform(0.5, 1.0), layers - 2)
            yield now_s, DeviceTaken(segment=0, step=step, device="cpu", allocated_bytes=noise.randrange(1 << 30))
            yield now_s, Evaluated(segment=0, step=step, loss=noise.uniform(0, 1), accuracy=noise.uniform(0, 1))


def write(folder: Path, events: Iterator[tuple[float, AnyEvent]]) -> float:
    """Write a record; returns the CPU seconds of the writer alone."""
    history, now_s, used_s, committed_s = History(), 0.0, 0.0, 0.0
    writer = RecordWriter.open(Launch(run="r", name="r", folder=str(folder), socket=None), history.send)
    writer._readings = ByteRate(writing.READINGS_PER_S, writing.READINGS_AT_ONCE, lambda: now_s)
    for now_s, event in events:
        history.apply(event)
        begun_s = time.process_time()
        writer.add(event)
        if now_s >= committed_s + writing.COMMIT_S:
            committed_s = now_s
            writer.commit()
        used_s += time.process_time() - begun_s
    writer.close()
    return used_s


def size(layers: int, per_s: float) -> None:
    """Print how large the record of an hour is, by table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used_s = write(folder, hour_of_events(layers, per_s, HOUR_S))
        total = (folder / RECORD_FILE).stat().st_size
        with Record.open(folder) as record:
            execute = record._connection.execute
            parts = ", ".join(
                f"{table} {used / 1e6:.1f} MB"
                for table, used in execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC LIMIT 4")
            )
            kept = execute("SELECT count(*) FROM events WHERE kind = 'reading'").fetchone()[0]
        print(
            f"{layers} layers, {per_s:g} steps/s: {total / 1e6:.1f} MB an hour ({parts}); "
            f"{kept / HOUR_S:.2f} readings/s; writer {used_s / HOUR_S:.2%} of a core"
        )


def opening(count: int) -> None:
    """Print how long a record of `count` steps takes to open, with readings of 60 layers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_s = 1000.0
        write(folder, hour_of_events(60, per_s, int(count / per_s)))
        done = subprocess.run([sys.executable, "-c", OPENING, folder], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        jumps, back = found["jumps_s"], found["back_s"]
        print(
            f"{found['steps']:,} steps, {(folder / RECORD_FILE).stat().st_size / 1e6:.0f} MB: opened in "
            f"{found['opened_s']:.2f} s; a jump takes {statistics.median(jumps) * 1e3:.0f} ms, at most "
            f"{jumps[-1] * 1e3:.0f} ms; back by 1 % {statistics.median(back) * 1e3:.0f} ms; "
            f"peak memory of the process {found['peak'] / 1e6:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("cost", "size", "open"))
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8000, help="of each run of `cost`")
    args = parser.parse_args()
    if "cost" in args.parts:
        with tempfile.TemporaryDirectory() as home:
            os.environ["TUI_DESCENT_HOME"] = home
            cost(args.pairs, args.steps)
    if "size" in args.parts:
        for per_s in (30.0, 700.0):
            size(60, per_s)
    if "open" in args.parts:
        opening(1_000_000)


if __name__ == "__main__":
    main()
