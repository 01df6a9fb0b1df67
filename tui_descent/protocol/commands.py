"""The commands that a run accepts. Each gets exactly one reply: an event with the same `request` number."""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["key", "send", "plan", "rollback"]


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="do"):
    """A command from a viewer, a script or the scenario's plan."""


class TurnKnob(Command, frozen=True, kw_only=True, tag="turn"):
    """Change one knob. `scenario/knobs.py` defines the text form, as in `residual@blocks.3=on,way=ramp`.

    `parameters` belong to the value: `schedule=warmup_cosine,warmup=100`.
    """

    knob: str
    value: str
    target: str = "all"
    way: str | None = None
    scale: float | None = None
    where: str | None = None
    parameters: tuple[tuple[str, int | float], ...] = ()


class CheckKnob(Command, frozen=True, kw_only=True, tag="check"):
    """Check whether a knob could be turned now. Nothing is changed."""

    turn: TurnKnob


class Pause(Command, frozen=True, kw_only=True, tag="pause"):
    """Pause before the next step. `Resume` or `RunSteps` ends the pause."""


class Resume(Command, frozen=True, kw_only=True, tag="resume"):
    """Continue a paused run. A run at its end trains for the same number of steps again."""


class RunSteps(Command, frozen=True, kw_only=True, tag="steps"):
    """Make `steps` updates, then pause."""

    steps: int


class Evaluate(Command, frozen=True, kw_only=True, tag="evaluate"):
    """Evaluate on the held-out data."""


class Mark(Command, frozen=True, kw_only=True, tag="mark"):
    """Put a labelled mark on the time axis."""

    text: str = "mark"


class Undo(Command, frozen=True, kw_only=True, tag="undo"):
    """Restore the exact state before the last intervention; after a non-finite loss, restore the last good snapshot."""


class Redo(Command, frozen=True, kw_only=True, tag="redo"):
    """Return to the state in which the last `Undo` was made."""


class WatchCurvature(Command, frozen=True, kw_only=True, tag="curvature"):
    """Measure the curvature from now on, every 10 to 60 s, depending on the budget.

    The measurements stop after the same command with `on = False`, or when the client disconnects.
    """

    on: bool


class WatchTask(Command, frozen=True, kw_only=True, tag="task"):
    """Send pictures of what is being learnt from now on, at most five a second, for `columns` × `rows` cells. The
    pictures stop after the same command with `on = False`, or when the client disconnects.
    """

    on: bool
    columns: int = 0
    rows: int = 0


class WatchLens(Command, frozen=True, kw_only=True, tag="lens"):
    """Count the pre-activations of a layer's activation from now on, at most five times a second. An empty `layer` is
    the first one with an activation. The counts stop after the same command with `on = False`, or when the client
    disconnects.
    """

    on: bool
    layer: str = ""


class MeasureBackwardPass(Command, frozen=True, kw_only=True, tag="backward_pass"):
    """Send one chain-rule reading with the factor of each part of the blocks, for the last batch. The batch is run
    again for this; the run does not change.
    """


class RunRangeTest(Command, frozen=True, kw_only=True, tag="run_range_test"):
    """Run a learning-rate range test from the current state, then restore that state. The reply comes when the test is
    done. If a test is already running, no second test starts, and the reply comes when the running test is done.
    """


class CancelRangeTest(Command, frozen=True, kw_only=True, tag="cancel_range_test"):
    """Withdraw this client's request for a range test. The test stops if no other client has requested it."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """End the run after the step in progress; a script then runs the code after its loop. With `kill`, end the process
    at once.
    """

    kill: bool = False


class ResizeTerminal(Command, frozen=True, kw_only=True, tag="resize"):
    """Change the size of the terminal of a user's script. This has no effect on other runs, which have no terminal."""

    columns: int
    rows: int


AnyCommand = (
    TurnKnob
    | CheckKnob
    | Pause
    | Resume
    | RunSteps
    | Evaluate
    | Mark
    | Undo
    | Redo
    | WatchCurvature
    | WatchTask
    | WatchLens
    | MeasureBackwardPass
    | RunRangeTest
    | CancelRangeTest
    | Stop
    | ResizeTerminal
)


# The commands of a read-only viewer: they change nothing in the run.
HARMLESS = (CheckKnob, WatchCurvature, WatchTask, WatchLens, MeasureBackwardPass)


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="hello"):
    """A viewer's first frame. With `read_only`, its requests are rejected, except those in `HARMLESS`."""

    version: int
    name: str = "viewer"
    read_only: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="request"):
    """A command from a viewer. The reply has the same `request` number."""

    request: int
    command: AnyCommand
    source: Source = "key"


class Join(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="join"):
    """The only frame of a process that wants to be the run's trainer. The answer is `Joined`, or `Refused`."""

    version: int


FromViewer = Hello | Request | Join


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the keeper forwards it to the trainer, with the number of the client it came from."""

    client: int
    request: int
    source: Source
    command: AnyCommand
