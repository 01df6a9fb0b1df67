"""Where a run is, and the events that say so."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.protocol.events import AnyEvent, CommandDone, CommandRejected, State, StateChanged
from tui_descent.protocol.ring import Ring
from tui_descent.training.device_memory import DeviceMemory
from tui_descent.training.keeper_link import KeeperLink


class Progress:
    """One run's segment, step and state. `step` is the number of the next update."""

    def __init__(self, link: KeeperLink | None) -> None:
        self.link = link
        self.segment = self.step = 0
        self.segments = 0  # undos and redos so far
        self.rewinds = 0  # times that `step` no longer follows the update before: undo, redo, updates that were none
        self.interventions = 0
        self.fast_steps = 0  # coming steps at which nothing is due but their record
        self.stood = False  # whether the last look between two updates did more than keep the pace
        self.rewound = False  # since the last look between two updates
        self.broken = False  # held because numbers are not finite: undo goes back to the last good snapshot
        self.state: tuple[State, str] | None = None
        self._memory: DeviceMemory | None = None

    def begin(self, model: nn.Module, *, layers: int) -> None:
        """Lay out the shared memory with room for so many layers. Raises `RuntimeError` when it cannot be."""
        if self.link is None:
            return
        try:
            self.link.make_ring(layers)
        except OSError as error:
            raise RuntimeError(f"the run's shared memory cannot be laid out: {error}") from error
        self._memory = DeviceMemory(next((p.device for p in model.parameters()), torch.device("cpu")))

    @property
    def ring(self) -> Ring | None:
        """The shared memory; None before the run's first step and where nobody watches."""
        return self.link.ring if self.link is not None else None

    @property
    def place(self) -> dict[str, Any]:
        """Segment and step, as events carry them."""
        return {"segment": self.segment, "step": self.step}

    def rewind(self, segment_step: int) -> None:
        """An undo or a redo begins another segment at this step."""
        self.segments += 1
        self.segment, self.step = self.segments, segment_step
        self.rewinds += 1
        self.rewound, self.broken = True, False

    def uncount(self, updates: int) -> None:
        """The last updates turned out to be none: the device had skipped them."""
        self.step -= updates
        self.rewinds += 1

    def emit(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event to the keeper, if there is one; `more` events follow and are sent together."""
        if self.link is not None:
            self.link.emit(event, more=more)

    def set_state(self, state: State, reason: str = "") -> None:
        """Report what the run is doing now, once."""
        if self.state != (state, reason):
            self.state = (state, reason)
            self.emit(StateChanged(state=state, reason=reason))

    def done(self, order: ClientRequest, what: str, *, more: bool = False) -> None:
        """Reply to a command that turned no knob by itself."""
        self.emit(CommandDone(what=what, **reply_to(order), **self.place), more=more)

    def reject(self, order: ClientRequest, reason: str, *, more: bool = False) -> None:
        """Reply to a command that could not be carried out."""
        knob = order.command.knob[:60] if isinstance(order.command, TurnKnob) else ""
        rejected = CommandRejected(source=order.source, knob=knob, reason=reason, **reply_to(order), **self.place)
        self.emit(rejected, more=more)

    def report_memory(self) -> None:
        """Report the memory that training takes, every few seconds."""
        now_s = time.monotonic()
        if self._memory is not None and now_s >= self._memory.due_s:
            self.emit(self._memory.taken(self.segment, self.step, now_s))

    def close(self) -> None:
        """The run is over."""
        if self.link is not None:
            self.link.close()


def reply_to(order: ClientRequest) -> dict[str, Any]:
    """Client and request, as replies carry them."""
    return {"client": order.client, "request": order.request}
