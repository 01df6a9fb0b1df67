"""Going back in a run, as events, and the values its knobs then have."""

from __future__ import annotations

import msgspec


class KnobState(msgspec.Struct, frozen=True, kw_only=True):
    """A knob's present value as the trainer read it back, or why it cannot act in this run."""

    name: str
    value: str = ""
    unavailable: str | None = None


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="snapshot"):
    """The exact state before update `step` can be gone back to.

    All snapshots together take `used_bytes` of `budget_bytes` memory.
    """

    segment: int
    step: int
    reason: str
    used_bytes: int = 0
    budget_bytes: int = 0


class Ghost(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a segment that was left behind: its steps `first` to `last`. `undone` is the intervention's id."""

    segment: int
    first: int
    last: int
    label: str
    undone: int | None = None


class Rewound(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="rewound"):
    """The run stands where it stood before update `to_step` of `to_segment`, and goes on as `segment` from `step` on.

    `step` is `to_step` but in a foreign loop, whose own counter goes on. `what` was undone or, `back = False`, redone;
    `in_force` are the ids of the interventions that still act.
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

    def words(self) -> tuple[str, str, str]:
        """What was undone or redone, where the run stands now, and where it was: in the same words everywhere."""
        what = f"{'undone' if self.back else 'redone'}: {self.what}"
        now = f"now at step {self.step:,} of segment {self.segment}"
        if self.step != self.to_step:  # a loop of one's own goes on counting
            now = f"state of step {self.to_step:,}, {now}"
        return what, now, f"was at {self.from_step:,} of segment {self.from_segment}"
