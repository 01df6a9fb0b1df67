"""Prepares a recorded run to go on: what its record says about its past, and the settings with which it is started."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from tui_descent import paths
from tui_descent.protocol.events import KnobTurned, Rewound
from tui_descent.protocol.launch import (
    CLOSED_FILE,
    CONNECTED_FILE,
    SNAPSHOTS_FOLDER,
    Launch,
)
from tui_descent.protocol.resume import Replayed, Resume
from tui_descent.protocol.run_lock import create_lock
from tui_descent.run_list import find_run
from tui_descent.scenario.knobs import NEUTRAL_KNOBS
from tui_descent.scenario.presets import names
from tui_descent.telemetry.record import Record, RecordError

NO_LIMIT = 2**62


class CannotResumeError(Exception):
    """The run cannot be resumed. The message says why, and what to do."""


def recorded(name: str | None, runs_dir: str | None = None) -> Launch:
    """The settings of the run called `name`, or of the newest run.

    Raises `CannotResumeError` if it is live or a race, `RunNotFoundError`, and `ChannelError`.
    """
    run = find_run(name, runs_dir, newest=True)
    if run.live:
        raise CannotResumeError(f"{run.run} has not ended; open it with: tui-descent attach {run.run}")
    try:
        launch = Launch.read(run.folder)
    except (OSError, msgspec.DecodeError) as error:
        raise CannotResumeError(f"{run.folder}: its settings cannot be read: {error}") from None
    if launch.race:
        again = f"tui-descent race {launch.name}" if launch.name in names() else "tui-descent race"
        raise CannotResumeError(f"{run.run} is a race, and races are not saved; start it again with: {again}")
    return msgspec.structs.replace(launch, run=run.run, folder=str(run.folder))


def how_to_start(launch: Launch) -> str:
    """How a script that was not started by us goes on. Raises `CannotResumeError` if nothing of it was saved."""
    if not _saved_segments(launch.path):
        raise CannotResumeError(
            f"{launch.run} cannot be resumed: nothing was saved. Its script has to call run.resume(); then it is saved "
            "every 5 minutes, when it is stopped, and at its end"
        )
    return f"TUI_DESCENT_RESUME={launch.run} python your_script.py"


def prepare(launch: Launch, *, attended: bool, steps: int | None = None) -> Launch:
    """Settings with which the run goes on; they replace the old ones in its folder. Holds the folder's lock.

    Raises `CannotResumeError`, `ChannelError` or `OSError`.
    """
    resume = resume_of(launch, steps)
    if launch.scenario is not None and not attended:
        goal = steps or launch.scenario["run"]["steps"]
        if goal <= resume.from_step:
            made = f"{launch.run} has made {resume.from_step:,} of {goal:,} steps"
            more = f"--steps {resume.from_step + launch.scenario['run']['steps']}"
            raise CannotResumeError(f"{made}; to make more, give their number in all, as in {more}")
    for name in (CONNECTED_FILE, CLOSED_FILE):
        with contextlib.suppress(FileNotFoundError):
            (launch.path / name).unlink()
    prepared = msgspec.structs.replace(
        launch,
        socket=str(paths.socket_path(launch.run)),
        attended=attended,
        pace=launch.pace if attended else None,
        range_test_at=tuple(at for at in launch.range_test_at if at > resume.planned),
        resume=resume,
    )
    create_lock(launch.path)
    prepared.write()
    return prepared


def resume_of(launch: Launch, steps: int | None = None) -> Resume:
    """What the record says about the past of a run. If it cannot be read, nothing after the snapshot is replayed."""
    saved = _saved_segments(launch.path)
    try:
        with Record.open(launch.path) as record:
            changes, (segment, step) = record.changes(), record.position()
            in_effect = record.interventions()
    except RecordError:
        return Resume(segment=max(saved, default=0) + 1, steps=steps)
    turned = [change for change in changes if isinstance(change, KnobTurned)]
    rewound = [change for change in changes if isinstance(change, Rewound)]
    planned = max([step, *(change.from_step for change in rewound)])
    return Resume(
        segment=max([segment, *saved, *(change.segment for change in rewound)]) + 1,
        from_segment=segment,
        from_step=step,
        past=_past(rewound, segment),
        replay=tuple(
            Replayed(id=one.id, step=one.step, source=one.source, command=one.again)
            for one in in_effect
            if one.knob not in NEUTRAL_KNOBS
        ),
        interventions=max((one.id for one in turned), default=0),
        planned=planned,
        played=tuple(one.again for one in turned if one.source == "plan" and one.step == planned),
        steps=steps,
    )


def _past(rewound: list[Rewound], segment: int) -> tuple[tuple[int, int], ...]:
    """The segments that led to the end of `segment`, each with the first step that is not in its past."""
    # The snapshot of a resumption is in the past. That of an undo is not: there may be another one of the same step,
    # taken after the intervention that was undone.
    parents = {one.segment: (one.to_segment, one.to_step + one.resumed) for one in rewound}
    past = [(segment, NO_LIMIT)]
    while past[-1][0] in parents and len(past) <= len(parents):
        past.append(parents[past[-1][0]])
    return tuple(past)


def _saved_segments(folder: Path) -> list[int]:
    """The segments of the snapshots on disk."""
    names = [path.stem.partition("-")[0] for path in (folder / SNAPSHOTS_FOLDER).glob("*-*.pt")]
    return [int(name) for name in names if name.isdecimal()]
