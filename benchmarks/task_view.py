"""What the views cost for which the trainer works: the time of a step with the view closed over that with it open.

The views are the task, the activation lens, and the steps of the backward pass, which are measured once a second here.

Each run is trained in this process, beside the keeper's end of its connection. Slices with the view open and slices
with it closed take turns. Times are CPU seconds of the training thread.

    python benchmarks/task_view.py --seconds 20
    python benchmarks/task_view.py --view lens --case text
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
import torch
from fake_keeper import FakeKeeper

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand, MeasureBackwardPass, WatchLens, WatchTask
from tui_descent.protocol.events import LedgerTaken, LensTaken, TaskTaken
from tui_descent.scenario import presets
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.setup.build import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.task_pictures.painters import painter_of
from tui_descent.training.watch.watch import Watch

CASES: dict[str, tuple[str, ...]] = {
    "surface": ("saddle",),
    "curve": ("first-descent",),
    "regions": ("healthy", "data.name=spirals", "model.depth=10", "model.width=24"),
    "digits": ("healthy",),
    "20 layers": ("vanishing",),
    "text": ("transformer",),
}
WITHOUT_ACTIVATIONS, WITHOUT_BLOCKS = ("surface", "curve"), ("surface", "curve", "text")
# The command that opens each view, and the event that it then gets.
TASK = WatchTask(on=True, columns=110, rows=32)  # the panel's size in a terminal of 120×40
VIEWS: dict[str, tuple[AnyCommand, type[TaskTaken | LensTaken | LedgerTaken]]] = {
    "task": (TASK, TaskTaken),
    "lens": (WatchLens(on=True), LensTaken),
    "backward pass": (MeasureBackwardPass(), LedgerTaken),
}
SLICE_S = 1.0


def measure(view: str, case: str, seconds: float, keeper: FakeKeeper) -> str:
    """One line of the table, after about `seconds` of training with the view open and as much with it closed."""
    (name, *overrides), (opens, event) = CASES[case], VIEWS[view]
    _, scenario = presets.find(name, overrides=overrides)
    setup, sampler = build(scenario, on=torch.device("cpu")), Sampler()
    steering = Steering(setup.model, setup.optimizer, setup=setup)
    task = TaskProbe(setup.model, lambda: painter_of(setup), sampler)
    by_view: dict[bool, list[float]] = {True: [], False: []}  # seconds per step, by whether the view is open
    pictures, made_s, closed_s = 0, 0.0, 0.0
    with Watch(
        setup.model, setup.optimizer, link=keeper.link, sampler=sampler, steering=steering, replay=setup, task=task
    ) as run:
        run.begin_step()
        for n in range(2 * max(3, round(seconds / SLICE_S)) + 2):
            is_open = n % 2 == 1
            if n and (is_open or not isinstance(opens, MeasureBackwardPass)):
                keeper.send(opens if is_open else type(opens)(on=False))
            if is_open:  # the time for which the view was closed does not allow for more events
                for schedule in (sampler.task, sampler.lens):
                    schedule.last_s += sampler.now_s - closed_s
            start_s, steps, took_s = time.thread_time(), 0, sampler.task.took_s + sampler.lens.took_s
            while (slice_s := time.thread_time() - start_s) < SLICE_S:
                if setup.path is not None:
                    setup.path.add(run.next_step)
                loss = setup.loss()
                run.loss(loss)
                setup.optimizer.zero_grad()
                loss.backward()
                setup.optimizer.step()
                run.step(loss)
                steps += 1
            closed_s = sampler.now_s if is_open else closed_s
            found = sum(event is not LedgerTaken or bool(e.entries[0].parts) for e in keeper.events(event))
            if n >= 2:  # the first two slices warm up
                by_view[is_open].append(slice_s / steps)
                pictures, made_s = pictures + found, made_s + sampler.task.took_s + sampler.lens.took_s - took_s
    ratio = statistics.median(c / o for c, o in zip(by_view[False], by_view[True], strict=True))
    open_s = SLICE_S * len(by_view[True])
    step_ms = 1000 * statistics.median(by_view[False])
    cells = [view, case, f"{step_ms:.3f} ms", f"{ratio:.3f}", f"{made_s / open_s:.3f}", f"{pictures / open_s:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--view", action="append", choices=VIEWS, help="default: all")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--seconds", type=float, default=20, help="with the view open, for each case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| view | run | step | closed / open | share of the events | events per CPU second |\n|---|---|---|---|---|---|"
    )
    for view in args.view or VIEWS:
        without = {"lens": WITHOUT_ACTIVATIONS, "backward pass": WITHOUT_BLOCKS}.get(view, ())
        for case in [case for case in args.case or CASES if case not in without]:
            with tempfile.TemporaryDirectory(prefix="td") as folder:
                keeper = FakeKeeper(Path(folder))
                print(measure(view, case, args.seconds, keeper), flush=True)
                keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
