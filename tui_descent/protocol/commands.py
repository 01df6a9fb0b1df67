"""What can be asked of a run. Each command gets exactly one reply: an event that carries its `request`."""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["key", "send", "plan"]


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="do"):
    """A request from a viewer, a script or the scenario's plan."""


class TurnKnob(Command, frozen=True, kw_only=True, tag="turn"):
    """Set one knob; `knob[@target]=value[,way=…][,scale=…][,where=…][,PARAMETER=…]` is its text form.

    `parameters` are of the value chosen: `schedule=warmup_cosine,warmup=100`. The grammar is `scenario.knobs`'.
    """

    knob: str
    value: str
    target: str = "all"
    way: str | None = None
    scale: float | None = None
    where: str | None = None
    parameters: tuple[tuple[str, int | float], ...] = ()


class Pause(Command, frozen=True, kw_only=True, tag="pause"):
    """Stop before the next step until `Resume`, `StepOnce` or `RunSteps`."""


class Resume(Command, frozen=True, kw_only=True, tag="resume"):
    """Go on; at a run's end: as many steps again."""


class RunSteps(Command, frozen=True, kw_only=True, tag="steps"):
    """Make `steps` updates, then pause. One step is the single step of the keys."""

    steps: int


class Evaluate(Command, frozen=True, kw_only=True, tag="evaluate"):
    """Evaluate on the held-out data now."""


class Mark(Command, frozen=True, kw_only=True, tag="mark"):
    """Put a labelled mark on the time axis."""

    text: str = "mark"


class Undo(Command, frozen=True, kw_only=True, tag="undo"):
    """Back to the exact state before the last intervention; after a non-finite loss, to the last good snapshot."""


class Redo(Command, frozen=True, kw_only=True, tag="redo"):
    """Forward again to where the last `Undo` was made."""


class WatchCurvature(Command, frozen=True, kw_only=True, tag="curvature"):
    """Read the curvature from now on, every 10 to 60 s as the budget allows; `on = False`, or leaving, ends it."""

    on: bool


class SweepRates(Command, frozen=True, kw_only=True, tag="sweep_rates"):
    """Test the learning rates from the present state on the present data; everything is put back as it was.

    Answered once it is done; where one is under way already, together with that one.
    """


class CancelSweep(Command, frozen=True, kw_only=True, tag="cancel_sweep"):
    """Give up the test that this client asked for; it ends once nobody wants it."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """End the run after the step in progress."""


AnyCommand = (
    TurnKnob
    | Pause
    | Resume
    | RunSteps
    | Evaluate
    | Mark
    | Undo
    | Redo
    | WatchCurvature
    | SweepRates
    | CancelSweep
    | Stop
)


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="hello"):
    """A viewer's first frame."""

    version: int
    name: str = "viewer"


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="request"):
    """A viewer's command with the number it will know the reply by."""

    request: int
    command: AnyCommand
    source: Source = "key"


FromViewer = Hello | Request


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the keeper passes it on to the trainer: stamped with the client it came from."""

    client: int
    request: int
    source: Source
    command: AnyCommand
