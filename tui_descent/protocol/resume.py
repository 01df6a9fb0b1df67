"""What a trainer has to know to go on with a run that was recorded. The command line reads it from the record."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.commands import Source, TurnKnob


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded intervention, with its id and the update before which it was made."""

    id: int
    step: int
    source: Source
    command: TurnKnob


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Go on as segment `segment`, from the newest good snapshot on disk, or else from the start of the run.

    `from_segment` and `from_step` are where the recorded run was at its end. Only snapshots in its past are used:
    `past` has pairs of a segment and a step, and a snapshot of that segment must be from before this step. None means
    that the past is not known, so each snapshot is in it. `replay` are the interventions that are in effect at the end,
    in their order; those that the snapshot already contains are left out. `interventions` is the highest id so far. Of
    the plan, all entries before `planned` have been played, and those in `played` of that step. `steps` is the new
    number of steps, None for the old one.
    """

    segment: int
    from_segment: int = 0
    from_step: int = 0
    past: tuple[tuple[int, int], ...] | None = None
    replay: tuple[Replayed, ...] = ()
    interventions: int = 0
    planned: int = 0
    played: tuple[TurnKnob, ...] = ()
    steps: int | None = None
