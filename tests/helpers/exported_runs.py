"""Headless runs in a thread of the test, their events, and scripts that run in a process without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tui_descent import headless, paths
from tui_descent.export.python.script import About, python_script
from tui_descent.export.scenario_file import ScenarioFile, scenario_file
from tui_descent.protocol.events import (
    AnyEvent,
    CommandRejected,
    KnobTurned,
    Rewound,
    RunEnded,
    RunStarted,
    StepsCompleted,
)
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import knobs
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import to_table
from tui_descent.trainer_thread import TrainerThread

WITHIN_S = 300
# Runs scripts without this package; prints what each has printed.
RUN_ALL = """
import contextlib, io, json, runpy, sys
class WithoutUs:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tui_descent":
            raise ImportError(name)
sys.meta_path.insert(0, WithoutUs())
printed = []
for path in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        runpy.run_path(path, run_name="__main__")
    printed.append(text.getvalue())
print(json.dumps(printed))
"""


@dataclass(frozen=True)
class MadeRun:
    """A run that has ended, with its events."""

    scenario: Scenario
    events: list[AnyEvent]

    @property
    def losses(self) -> list[float]:
        return [loss for e in self.events if isinstance(e, StepsCompleted) for loss in e.losses]

    @property
    def interventions(self) -> list[KnobTurned]:
        return [e for e in self.events if isinstance(e, KnobTurned)]

    @property
    def rejected(self) -> list[str]:
        return [e.reason for e in self.events if isinstance(e, CommandRejected)]

    @property
    def started(self) -> RunStarted:
        return next(e for e in self.events if isinstance(e, RunStarted))

    @property
    def ended(self) -> RunEnded:
        return next(e for e in self.events if isinstance(e, RunEnded))

    def script(self) -> str:
        started = self.started
        about = About(
            run="r-1", steps=self.ended.step, threads=started.threads, device=started.device, versions=started.versions
        )
        return python_script(self.scenario, self.interventions, about)

    def file(self) -> ScenarioFile:
        return scenario_file(
            self.scenario, self.interventions, run="r-1", steps=self.ended.step, threads=1, device="cpu"
        )


def make_run(scenario: Scenario, given: Sequence[str] = ()) -> MadeRun:
    """Train the scenario with these interventions, as `--at` takes them."""
    run, folder = paths.new_run("exported")
    planned = map(knobs.parse_at, given)
    launch = Launch(
        run=run,
        name="exported",
        folder=str(folder),
        socket=None,
        scenario=to_table(scenario),
        plan=tuple((at, knobs.text_of(command)) for at, command in planned),
        watch_budget=0.0,
    )
    launch.write()
    events: list[AnyEvent] = []
    headless.run(launch, listen=events.append, start=TrainerThread.start)
    return MadeRun(scenario, events)


def printed_losses(folder: Path, scripts: Mapping[str, str]) -> dict[str, list[float]]:
    """Run the scripts in one process without this package; returns the losses that each has printed."""
    paths_ = []
    for name, text in scripts.items():
        paths_.append(folder / f"{name}.py")
        paths_[-1].write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL, *map(str, paths_)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    return {name: losses_in(text) for name, text in zip(scripts, printed, strict=True)}


def losses_in(text: str) -> list[float]:
    """The losses in the lines `step loss` of a script's output."""
    rows = [line.split() for line in text.splitlines()]
    steps = [row for row in rows if len(row) == 2 and row[0].isdigit()]
    assert [int(step) for step, _ in steps] == list(range(len(steps)))
    return [float(loss) for _, loss in steps]


def lineage(events: Iterable[AnyEvent]) -> list[float]:
    """The losses that led to the end of a run, without those that were undone."""
    segments: dict[int, dict[int, float]] = {0: {}}
    segment = 0
    for event in events:
        if isinstance(event, Rewound):
            segment = event.segment
            kept = segments.get(event.to_segment, {})
            segments[segment] = {step: loss for step, loss in kept.items() if step < event.to_step}
        elif isinstance(event, StepsCompleted):
            segments[event.segment] |= dict(enumerate(event.losses, event.first))
    found = segments[segment]
    assert list(found) == list(range(len(found)))
    return list(found.values())
