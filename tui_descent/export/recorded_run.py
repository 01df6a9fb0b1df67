"""What a record says about a run of a scenario: the scenario, and what was done to the run."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tui_descent.export.errors import ExportError
from tui_descent.export.python.script import About, python_script
from tui_descent.export.scenario_file import ScenarioFile, scenario_file
from tui_descent.protocol.events import AnyEvent, KnobTurned, Rewound, RunStarted, StateChanged, StepsCompleted
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import ScenarioError, from_table
from tui_descent.telemetry.record import Record


class RecordedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a scenario. `interventions` and `dropped` belong to its final lineage, without what was undone.

    `dropped` are the steps at which the run was held, and then continued with the next batch.
    """

    run: str
    scenario: Scenario
    started: RunStarted
    steps: int
    interventions: tuple[KnobTurned, ...]
    dropped: tuple[int, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What an export cannot repeat, as sentences for the user."""
        if not self.dropped:
            return ()
        steps = ", ".join(f"{step:,}" for step in self.dropped[:5])
        return (f"the run has dropped a batch at step {steps}; from there on the losses differ",)

    def as_scenario(self) -> ScenarioFile:
        """The run as a scenario file. Raises `ExportError`."""
        made = scenario_file(
            self.scenario,
            self.interventions,
            run=self.run,
            steps=self.steps,
            threads=self.started.threads,
            device=self.started.device,
        )
        return ScenarioFile(made.text, (*made.notes, *self.notes))

    def as_script(self) -> str:
        """The run as a plain PyTorch script. Raises `ExportError`."""
        started = self.started
        about = About(
            run=self.run,
            steps=self.steps,
            threads=started.threads,
            device=started.device,
            versions=started.versions,
        )
        return python_script(self.scenario, self.interventions, about)


def read(record: Record) -> RecordedRun:
    """The run of a scenario in a record. Raises `ExportError` for other runs, and `RecordError`."""
    about = record.about
    started = next((event for event in record.events() if isinstance(event, RunStarted)), None)
    if started is None:
        raise ExportError(f"{about.run} has made no step")
    if about.scenario is None:
        raise ExportError(f"{about.run} is a run of your own script; only runs of scenarios have this format")
    if started.lanes:
        raise ExportError(f"{about.run} is a race; export a run of one optimizer")
    try:
        scenario = from_table(about.scenario, source=about.run, shortened=True)
    except ScenarioError as error:  # another version has made it
        raise ExportError(f"the scenario is not valid in this version: {error}") from None
    return RecordedRun(
        run=about.run,
        scenario=scenario,
        started=started,
        steps=about.step,
        interventions=tuple(record.interventions()),
        dropped=tuple(dropped_batches(record.events())),
    )


def dropped_batches(events: Iterable[AnyEvent]) -> list[int]:
    """The steps of the final lineage at which the run was held, and then went on without an undo."""
    lineages: dict[int, list[int]] = {0: []}
    segment, step = 0, 0
    held: int | None = None
    for event in events:
        match event:
            case StepsCompleted():
                if held is not None:
                    lineages[segment].append(held)
                held, step = None, event.first + len(event.losses)
            case Rewound():
                before = lineages.get(event.to_segment, [])
                segment, step, held = event.segment, event.step, None
                lineages[segment] = [at for at in before if at < event.to_step]
            case StateChanged(state="held"):
                held = step
            case _:
                pass
    return lineages[segment]
