"""Events that reply to commands: a knob was changed, a command was carried out, or it was rejected."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.commands import Source, TurnKnob
from tui_descent.protocol.undo_events import KnobState


class KnobTurned(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="intervention"):
    """An intervention that takes effect at update `step`.

    `old` and `new` are read back from the run and may be rounded; `value` is the exact value that was requested. `way`,
    `scale` and `where` are resolved, never `auto`. `parameters` are further settings of the value, such as the slope of
    a leaky ReLU. `turns` is the number of requests that were combined into this intervention. `note` describes side
    effects. `knobs` has every knob whose value changed. Its values are those of the whole net, even if only one layer
    was changed.

    `function_change` is the largest absolute change of the net's outputs on a fixed batch of training samples, before
    the next update. `loss_before` and `loss_after` are the loss on that batch. For a gradual change, these three show
    only the immediate effect.
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
        """A command that repeats this intervention. Before the same update, its effect is bitwise the same."""
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
    """The reply to a command that does not change a knob."""

    client: int
    request: int
    segment: int
    step: int
    what: str


class CommandRejected(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="rejected"):
    """A command was rejected; nothing was changed."""

    client: int
    request: int
    source: Source
    segment: int
    step: int
    knob: str
    reason: str
