"""Events of undo and redo."""

from __future__ import annotations

import msgspec


class KnobState(msgspec.Struct, frozen=True, kw_only=True):
    """A knob's current value, read back from the run, or the reason why the knob is not available.

    For a user's net, `acts_on` are the modules that it changes, and `left_alone` those that it does not, each with the
    reason.
    """

    name: str
    value: str = ""
    unavailable: str | None = None
    acts_on: tuple[str, ...] = ()
    left_alone: tuple[tuple[str, str], ...] = ()


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="snapshot"):
    """The exact state before update `step` was stored, so that undo can restore it.

    All snapshots together use `used_bytes` of the `budget_bytes` they may use.
    """

    segment: int
    step: int
    reason: str
    used_bytes: int = 0
    budget_bytes: int = 0


class SnapshotSaved(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="snapshot_saved"):
    """The state before update `step` was written to the disk, so that the run can be resumed from it.

    The file has `bytes`; all snapshots of the run together have `total_bytes`, and may have `limit_bytes`. `seconds` is
    the time that copying and writing took.
    """

    segment: int
    step: int
    reason: str
    bytes: int = 0
    total_bytes: int = 0
    limit_bytes: int = 0
    seconds: float = 0.0


class Ghost(msgspec.Struct, frozen=True, kw_only=True):
    """Steps `first` to `last` of a segment, abandoned by an undo of the intervention with id `undone`."""

    segment: int
    first: int
    last: int
    label: str
    undone: int | None = None


class Rewound(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="rewound"):
    """The state before update `to_step` of `to_segment` was restored. The run continues as `segment`.

    The next update is `step`. It equals `to_step`, except in a user loop, whose step counter is not rewound. `what` is
    the intervention that was undone, or redone if `back` is False. `in_force` are the ids of the interventions that are
    still in effect. With `resumed`, the run was started again from a snapshot on disk, and `what` says so.
    """

    from_segment: int
    from_step: int
    to_segment: int
    to_step: int
    segment: int
    step: int
    what: str
    back: bool = True
    in_force: tuple[int, ...] = ()
    knobs: tuple[KnobState, ...] = ()
    resumed: bool = False

    def words(self) -> tuple[str, str, str]:
        """What was undone, redone or resumed, the position now, and the position before that."""
        what = self.what if self.resumed else f"{'undone' if self.back else 'redone'}: {self.what}"
        now = f"now at step {self.step:,} of segment {self.segment}"
        if self.step != self.to_step:  # a user loop's step counter is not rewound
            now = f"state of step {self.to_step:,}, {now}"
        return what, now, f"was at {self.from_step:,} of segment {self.from_segment}"
