"""What the knobs of one run stand on, and what a turn gives back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.undo_events import KnobState
from tui_descent.scenario.knobs import KNOBS
from tui_descent.training.optim.parameter_groups import replace_parameters
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.rate_multiplier import RateMultiplier
from tui_descent.training.undo.snapshot import HoldsState
from tui_descent.training.undo.torch_state import TorchState

RECENT = 10  # losses, whose mean is the loss now
# Fields that an undo puts back by assignment. Not the pace; nor the version, which only grows: what was made for one
# version must see that the net has changed.
_RESTORED_FIELDS = ("optimizer", "clip", "init", "step", "last_kick", "first_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobChange:
    """What a turn did, read back: the record keeps the resolved way, scale and place, so that it replays exactly."""

    old: str
    new: str
    way: str | None = None
    scale: float | None = None
    where: str | None = None
    function_change: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    note: str | None = None
    knobs: tuple[KnobState, ...] = ()

    def with_note(self, more: str | None) -> KnobChange:
        """The same with `more` at the end of the note."""
        return self if more is None else replace(self, note="; ".join(filter(None, (self.note, more))))

    def event_fields(self) -> dict[str, Any]:
        """All but old and new, as `KnobTurned` takes it."""
        names = ("way", "scale", "where", "function_change", "loss_before", "loss_after", "note", "knobs")
        return {name: getattr(self, name) for name in names}


class Knob(Protocol):
    """One thing to turn. `turn` raises `ValueError` when it cannot be; what was changed by then is put back."""

    def value(self) -> str:
        """What it is set to."""

    def unavailable(self) -> str | None:
        """Why it cannot act in this run; None where it can."""

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Do it; the turn was checked against the table."""


@dataclass(slots=True, kw_only=True)
class KnobContext:
    """One run as the knobs see it. `setup` is None in an own loop; `steps` how many updates the run is to make.

    `version` counts changes of the net's structure. `pending_values` holds what blocks are on their way to, by knob and
    target. `optimizer_listeners` are told of another optimizer.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: RateMultiplier
    pace: float | None
    setup: Setup | None
    seed: int
    steps: int | None
    clip: float | None
    init: str
    step: int = 0
    version: int = 0
    last_kick: str = "0"
    blocks: dict[str, Block] = field(default_factory=dict)
    user_blocks: dict[str, surgery.UserBlock] = field(default_factory=dict)
    no_blocks_reason: str = ""
    transitions: dict[tuple[str, str], surgery.Transition] = field(default_factory=dict)
    pending_values: dict[tuple[str, str], str] = field(default_factory=dict)
    optimizer_listeners: list[Callable[[torch.optim.Optimizer], None]] = field(default_factory=list)
    first_loss: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def holders(self) -> list[HoldsState]:
        """What holds the state of the run: model, optimizer, knobs, and a scenario's schedule and batches."""
        skips = (around.skip for around in self.user_blocks.values())
        tensors = TorchState(self.model, self.optimizer, *skips)
        return [tensors, self] if self.setup is None else [tensors, self, self.setup]

    def state(self) -> dict[str, Any]:
        """What the knobs have set, and the changes under way."""
        return {
            "fields": {name: getattr(self, name) for name in _RESTORED_FIELDS},
            "rate": self.rate.state(),
            "skips": [(around, around.skip) for around in self.user_blocks.values()],
            "transitions": [(key, change, change.state()) for key, change in self.transitions.items()],
            "pending_values": dict(self.pending_values),
            "losses": list(self.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to it; `Steering.restored` then tells the optimizer_listeners."""
        for name, value in state["fields"].items():
            setattr(self, name, value)
        self.rate.restore(state["rate"])
        for around, skip in state["skips"]:
            around.skip = skip
        self.transitions = {key: change for key, change, _ in state["transitions"]}
        for _, change, made in state["transitions"]:
            change.restore(made)
        self.pending_values = dict(state["pending_values"])
        self.losses = deque(state["losses"], maxlen=RECENT)

    def generator(self, knob: str) -> torch.Generator:
        """Random numbers of a turn: they hang on the run's seed, the step and the knob alone, so it can be replayed."""
        number = (self.seed * 1_000_003 + self.step) * len(KNOBS) + list(KNOBS).index(knob)
        return torch.Generator().manual_seed(number % 2**63)

    def change_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer makes the updates from the next on."""
        self.optimizer = optimizer
        self.rate.follow(optimizer)
        if self.setup is not None:
            self.setup.optimizer = optimizer
        for follower in self.optimizer_listeners:
            follower(optimizer)

    def update_parameters(self, changed: surgery.ParameterChanges) -> None:
        """The optimizer's parameters are the model's again, after surgery on the net."""
        replace_parameters(self.optimizer, self.model, changed)
        self.version += 1

    def start_transition(self, knob: str, target: str, transition: surgery.Transition) -> None:
        """A change begins that `Steering.advance` carries on."""
        self.transitions[knob, target] = transition
        self.version += 1

    def finish_transition(self, knob: str, target: str) -> None:
        """A change of the same part that is still under way ends before the next begins."""
        if (transition := self.transitions.pop((knob, target), None)) is not None:
            transition.finish()

    def advance(self, *, at_once: bool = False) -> None:
        """Take every change that is under way one update further; `at_once` only those that take no longer."""
        for key, transition in list(self.transitions.items()):
            if (not at_once or transition.steps == 1) and transition.advance():
                del self.transitions[key]
                self.version += 1


def common_value(values: Iterable[str]) -> str:
    """The one value of all, or `mixed`."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "mixed"


def not_in_user_loop(what: str) -> str:
    """The reason of knobs that only a scenario's run has."""
    return f"an own loop {what}; a scenario's run can be turned so"
