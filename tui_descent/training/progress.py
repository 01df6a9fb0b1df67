"""The position and the state of a run, and the events that report them."""

from __future__ import annotations

import errno
import time
from typing import Any, Literal

import torch
from torch import nn

from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Noted,
    RunEnded,
    State,
    StateChanged,
)
from tui_descent.protocol.ring import Ring
from tui_descent.training.device_memory import DeviceMemory
from tui_descent.training.keeper_link import KeeperLink

MOST_NOTES = 100  # how many different notes one run may send


class Progress:
    """Segment, step and state of one run. `step` is the number of the next update."""

    def __init__(self, link: KeeperLink | None) -> None:
        self.link = link
        self.segment = self.step = 0
        self.segments = 0  # the number of undos and redos so far
        # For each segment that an undo, a redo or a resumption has started: the segment whose steps it continues, and
        # the first step of that segment that is not in its past.
        self.parents: dict[int, tuple[int, int]] = {}
        self.start_s = time.perf_counter()  # the times of steps are measured from here
        self.rewinds = 0  # how often `step` has jumped: at an undo or redo, or when the device skipped updates
        self.interventions = 0
        self.fast_steps = 0  # how many of the next steps only need recording
        self.interrupted = False  # whether something other than pacing took time between the last two updates
        self.rewound = False  # whether an undo or redo has happened since the last update
        # Whether the run is held at a non-finite number: undo then goes back to the last good snapshot.
        self.broken = False
        self.state: tuple[State, str] | None = None
        self._noted: set[str] = set()
        self._memory: DeviceMemory | None = None

    def create_ring(self, model: nn.Module, *, layers: int) -> None:
        """Create the shared memory, with room for readings of `layers` layers.

        If that fails, reports the run as failed, closes the connection and raises `ChannelError`. If the script has
        already closed the connection, no shared memory is created, and training goes on unwatched.
        """
        if self.link is None or not self.link.connected:
            return
        try:
            self.link.make_ring(layers)
        except OSError as error:
            advice = "check ulimit -f" if error.errno == errno.EFBIG else "free some memory"
            reason = f"no room for the run's shared memory: {error.strerror}; {advice}"
            if self.link.launch.command is None:
                self.link.emit(RunEnded(status="failed", step=self.step, reason=reason))
            else:  # the script goes on, and ends with its own exit code
                self.link.emit(Noted(step=self.step, text=f"the run is not shown: {reason}", level="warning"))
            self.link.close()
            self.link = None
            raise ChannelError(reason) from error
        self._memory = DeviceMemory(next((p.device for p in model.parameters()), torch.device("cpu")))

    @property
    def ring(self) -> Ring | None:
        """The shared memory; None before the first step and without a keeper."""
        return self.link.ring if self.link is not None else None

    @property
    def place(self) -> dict[str, Any]:
        """Segment and step, as keyword arguments for an event."""
        return {"segment": self.segment, "step": self.step}

    def is_past(self, segment: int, step: int) -> bool:
        """Whether the state before update `step` of `segment` is in the past of the current state."""
        here, limit = self.segment, self.step + 1
        while here != segment and here in self.parents:
            here, limit = self.parents[here]
        return here == segment and step < limit

    def rewind(self, segment_step: int, *, parent: tuple[int, int]) -> None:
        """Start a new segment at the step `segment_step`, after an undo or a redo, with its entry in `parents`."""
        self.segments += 1
        self.parents[self.segments] = parent
        self.segment, self.step = self.segments, segment_step
        self.rewinds += 1
        self.rewound, self.broken = True, False

    def uncount(self, updates: int) -> None:
        """Subtract `updates` from the step count. Needed when it turns out that the device has skipped them."""
        self.step -= updates
        self.rewinds += 1

    def emit(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event to the keeper, if there is one. With `more`, it is sent together with the next event."""
        if self.link is not None:
            self.link.emit(event, more=more)

    def note(self, text: str, level: Literal["info", "warning"] = "warning") -> None:
        """Put a message into the event log; the same text only once."""
        if text not in self._noted and len(self._noted) < MOST_NOTES:
            self._noted.add(text)
            self.emit(Noted(step=self.step, text=text, level=level))

    def set_state(self, state: State, reason: str = "") -> None:
        """Report what the run is doing now, if this has changed."""
        if self.state != (state, reason):
            self.state = (state, reason)
            self.emit(StateChanged(state=state, reason=reason))

    def done(self, request: ClientRequest, what: str, *, more: bool = False) -> None:
        """Reply to a command that has been carried out; `what` is the answer shown to the user.

        For `TurnKnob`, the event `KnobTurned` is the reply instead.
        """
        self.emit(CommandDone(what=what, **reply_to(request), **self.place), more=more)

    def reject(self, request: ClientRequest, reason: str, *, more: bool = False) -> None:
        """Reply to a command that could not be carried out."""
        knob = request.command.knob[:60] if isinstance(request.command, TurnKnob) else ""
        rejected = CommandRejected(source=request.source, knob=knob, reason=reason, **reply_to(request), **self.place)
        self.emit(rejected, more=more)

    def report_memory(self) -> None:
        """Report the memory that training uses, at most every few seconds."""
        now_s = time.monotonic()
        if self._memory is not None and now_s >= self._memory.due_s:
            self.emit(self._memory.measure(self.segment, self.step, now_s))

    def close(self) -> None:
        """Close the connection to the keeper."""
        if self.link is not None:
            self.link.close()


def reply_to(request: ClientRequest) -> dict[str, Any]:
    """Client and request number, as keyword arguments for a reply."""
    return {"client": request.client, "request": request.request}
