"""Finds the snapshot from which a run goes on, and what has to be replayed after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.protocol.launch import SNAPSHOTS_FOLDER, Launch
from tui_descent.protocol.resume import Resume
from tui_descent.training.undo import snapshot_file
from tui_descent.training.undo.snapshot_file import SnapshotError
from tui_descent.training.undo.undo_stack import SavedEntry

Plan = Sequence[tuple[int, TurnKnob | str | ClientRequest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """Where a run goes on: before update `step`, with the state of `segment`.

    `interventions` is the number of interventions before the snapshot, `in_force` the ids of those in effect, and
    `undo` the newest of these, for an undo. `goal` is
    the number of steps to make, None for that of the scenario. `begun` and `parents` are as in `Control` and
    `Progress`. `notes` are for the user.
    """

    segment: int = 0
    step: int = 0
    interventions: int = 0
    in_force: tuple[int, ...] = ()
    undo: tuple[SavedEntry, ...] = ()
    goal: int | None = None
    begun: bool = False
    elapsed_s: float = 0.0
    parents: dict[int, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def snapshots_folder(launch: Launch) -> Path:
    """The folder of a run's snapshots."""
    return launch.path / SNAPSHOTS_FOLDER


def resume(launch: Launch, load: Callable[[dict[str, Any]], None]) -> Resumption | None:
    """Load the newest snapshot that `load` accepts, by a call with its content; `load` raises `SnapshotError` for one
    that does not fit.

    Returns None if there is no good snapshot. The notes of the result say which snapshots could not be used. Raises
    `SnapshotError` if there are snapshots, but none can be used.
    """
    assert launch.resume is not None
    notes: list[str] = []
    for file in reversed(snapshot_file.files(snapshots_folder(launch))):
        if not _is_past(launch.resume, file.segment, file.step):
            continue
        try:
            content = snapshot_file.read(file.path)
            if content.get("run") != launch.run:
                raise SnapshotError("it belongs to another run")
            found = _resumption(content)
            load(content)
        except SnapshotError as error:
            notes.append(f"the snapshot of step {file.step:,} cannot be used: {error}")
            continue
        went_on = f"resumed from the snapshot of step {found.step:,}"
        return replace(found, notes=(*notes, went_on))
    if notes:
        raise SnapshotError("; ".join(notes))
    return None


def plan_after(plan: list[tuple[int, TurnKnob | str]], resume: Resume, found: Resumption) -> Plan:
    """What is left of a run's plan, and the interventions that were made after the snapshot."""
    replayed = [
        (one.step, ClientRequest(client=0, request=0, source=one.source, command=one.command))
        for one in resume.replay
        if one.id > found.interventions
    ]
    played = [_what(command) for command in resume.played]
    planned = max(resume.planned, found.step)
    left: list[tuple[int, TurnKnob | str]] = []
    for at, entry in plan:
        if at == planned and isinstance(entry, TurnKnob) and _what(entry) in played:
            played.remove(_what(entry))
        elif at >= planned:
            left.append((at, entry))
    return [*replayed, *left]


def _what(command: TurnKnob) -> tuple[str, str, str]:
    """What a command asks for, without the way, which is resolved in a recorded one."""
    return command.knob, command.target, command.value


def _is_past(resume: Resume, segment: int, step: int) -> bool:
    return resume.past is None or any(segment == one and step < limit for one, limit in resume.past)


def _resumption(content: dict[str, Any]) -> Resumption:
    try:
        return Resumption(
            segment=int(content["segment"]),
            step=int(content["step"]),
            interventions=int(content["interventions"]),
            in_force=tuple(map(int, content["in_force"])),
            undo=msgspec.convert(content.get("undo", ()), tuple[SavedEntry, ...]),  # older versions have none
            goal=None if content["goal"] is None else int(content["goal"]),
            begun=bool(content["begun"]),
            elapsed_s=float(content["elapsed_s"]),
            parents={int(segment): (int(parent), int(limit)) for segment, parent, limit in content["parents"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"its content is not complete: {error}"[:200]) from error
