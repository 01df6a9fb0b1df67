"""The reply to a command, as events: what a turn did, that something was done, or why not."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.commands import Source, TurnKnob
from tui_descent.protocol.rewinding import KnobState


class KnobTurned(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="intervention"):
    """An intervention acts from update `step` on. `old` and `new` were read back from the trainer.

    `way`, `scale` and `where` are the resolved ones. `function_change` is the largest change of any of the net's
    outputs on a fixed batch of training samples, before the next update; `loss_before` and `loss_after` are the loss on
    it. A change on a longer way shows in them only what it does at once. `note` says what came along with it.
    `value` is what was asked for, exact where `old` and `new` are rounded; `turns` requests were made as this one.
    `parameters` are of the value chosen. `knobs` are those that stand otherwise now, the whole net's where one layer's
    was turned.
    """

    id: int
    client: int
    request: int
    source: Source
    segment: int
    step: int
    knob: str
    target: str
    old: str
    new: str
    way: str | None = None
    scale: float | None = None
    where: str | None = None
    function_change: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    note: str | None = None
    value: str | None = None
    turns: int = 1
    parameters: tuple[tuple[str, int | float], ...] = ()
    knobs: tuple[KnobState, ...] = ()

    @property
    def again(self) -> TurnKnob:
        """The command that, given before the same update, does the same to the last bit."""
        return TurnKnob(
            knob=self.knob,
            target=self.target,
            value=self.value or self.new,
            way=self.way,
            scale=self.scale,
            where=self.where,
            parameters=self.parameters,
        )


class CommandDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The reply to a command that turns no knob."""

    client: int
    request: int
    segment: int
    step: int
    what: str


class CommandRejected(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="rejected"):
    """Nothing was changed, and why."""

    client: int
    request: int
    source: Source
    segment: int
    step: int
    knob: str
    reason: str
