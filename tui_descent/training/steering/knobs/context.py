"""What all knobs of a run share: the run's model, optimizer and settings, and the result of turning a knob."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.undo_events import KnobState
from tui_descent.scenario.knobs import KNOBS
from tui_descent.training.optim.parameter_groups import replace_parameters
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.setup.nets.two_layer import TwoLayerNet
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.learning_rate import RateMultiplier
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.undo.snapshot import HoldsState
from tui_descent.training.undo.torch_state import TorchState

NO_LAYERS = "a test surface has no layers, only one point that moves"
NO_BLOCKS = "this net has no blocks, only two matrices"
RECENT_LOSSES = 10  # their mean is the current loss
# Fields that an undo restores by assignment. The pace is not one of them, because it does not affect training. The
# version is not either, because it must only ever increase: this is how objects built for an earlier version notice
# that the net has changed.
RESTORED_FIELDS = ("init", "step", "last_kick", "first_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobChange:
    """The result of turning a knob. `old` and `new` are its values, read back from the run.

    `way`, `scale` and `where` are the settings used, never `auto`, so the change can be replayed exactly.
    `function_change` is the largest change of an output on the probe batch; `loss_before` and `loss_after` are the
    losses on this batch. `knobs` are other states that changed too. If only one layer was changed, they include this
    knob's value for the whole net. If several optimizers were changed, `each` has the target, the old and the new value
    of each of them.
    """

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
    each: tuple[tuple[str, str, str], ...] = ()

    def with_note(self, text: str | None) -> KnobChange:
        """A copy with `text` appended to the note; None appends nothing."""
        return self if text is None else replace(self, note="; ".join(filter(None, (self.note, text))))

    def event_fields(self) -> dict[str, Any]:
        """All fields of a `KnobTurned` event except old and new."""
        names = ("way", "scale", "where", "function_change", "loss_before", "loss_after", "note", "knobs")
        return {name: getattr(self, name) for name in names}


class Knob(ABC):
    """One knob of one run."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    @abstractmethod
    def value(self) -> str:
        """The current setting, as text."""

    def unavailable(self) -> str | None:
        """Why the knob cannot be used in this run; None if it can."""
        return None

    def acts_on(self) -> tuple[str, ...]:
        """The parts of a user's net that the knob changes when it acts on the whole net; empty if this is obvious."""
        return ()

    def leaves_alone(self) -> dict[str, str]:
        """The parts of a user's net that the knob might be thought to change, with the reason why it does not."""
        return {}

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether the command asks for the current value, so there is nothing to do. False if this is not known before
        the command is carried out. Raises `ValueError` in the same cases as `turn`.
        """
        return False

    @abstractmethod
    def turn(self, turn: TurnKnob) -> KnobChange:
        """Carry out a command that was checked against the knobs table. Raises `ValueError` with the reason if the
        command fails; the caller then rolls back.
        """


@dataclass(slots=True, kw_only=True)
class KnobContext:
    """The state of one run that its knobs read and change.

    In a user loop `setup` and `steps`, the planned number of updates, are None. `optimizers` are the optimizers that
    train the net, usually one. `step` is the number of the update before which a knob was last turned. `version` is
    increased by each change of the net's structure. `blocks` has the blocks of a built-in net by name, and
    `user_blocks` the blocks found in a user's net. If there are none, `no_blocks_reason` says why. `observation` is
    what the first forward pass of a user's net has shown. `transitions` has the changes spread over several updates
    that are in progress, by (knob, target). `pending_values` has the values at which they end. `optimizer_listeners`
    are called with the new optimizer when it is replaced. `losses` are the most recent losses.
    """

    model: nn.Module
    optimizers: list[SteeredOptimizer]
    pace: float | None
    setup: Setup | None
    seed: int
    steps: int | None
    init: str
    step: int = 0
    version: int = 0
    last_kick: str = "0"
    blocks: dict[str, Block] = field(default_factory=dict)
    user_blocks: dict[str, surgery.UserBlock] = field(default_factory=dict)
    no_blocks_reason: str = ""
    observation: surgery.Observation = field(default_factory=surgery.Observation)
    transitions: dict[tuple[str, str], surgery.Transition] = field(default_factory=dict)
    pending_values: dict[tuple[str, str], str] = field(default_factory=dict)
    optimizer_listeners: list[Callable[[torch.optim.Optimizer], None]] = field(default_factory=list)
    first_loss: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_LOSSES))

    @property
    def no_layers(self) -> str | None:
        """Why no layer can be changed; None if the run has layers."""
        return NO_LAYERS if isinstance(self.model, Surface) else None

    @property
    def no_net(self) -> str | None:
        """Why nothing can be added to the net or replaced in it; None if its layers have to be looked at to tell."""
        return NO_BLOCKS if isinstance(self.model, TwoLayerNet) else self.no_layers

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; the first one if there are several."""
        return self.optimizers[0].optimizer

    @property
    def rate(self) -> RateMultiplier:
        """The rate multiplier of `optimizer`."""
        return self.optimizers[0].rate

    def targeted(self, target: str) -> list[SteeredOptimizer]:
        """The optimizers that a command's target names. Raises `ValueError`, which says what is allowed."""
        if target == "all":
            return self.optimizers
        if found := [one for one in self.optimizers if one.target == target]:
            return found
        if len(self.optimizers) == 1:
            raise ValueError(f'no optimizer "{target[:40]}": this run has one optimizer, so leave the target out')
        names = ", ".join(one.target for one in self.optimizers)
        raise ValueError(f'no optimizer "{target[:40]}"; allowed: {names}')

    def holders(self) -> list[HoldsState]:
        """The objects whose states make up a snapshot: model, optimizer, knobs, and a scenario's `Setup`."""
        skips = (block.skip for block in self.user_blocks.values())
        tensors = TorchState(self.model, *(one.optimizer for one in self.optimizers), *skips)
        return [tensors, self] if self.setup is None else [tensors, self, self.setup]

    def state(self) -> dict[str, Any]:
        """The knobs' settings and the transitions in progress."""
        return {
            "fields": {name: getattr(self, name) for name in RESTORED_FIELDS},
            "optimizers": [one.state() for one in self.optimizers],
            "skips": [(block, block.skip) for block in self.user_blocks.values()],
            "transitions": [(key, change, change.state()) for key, change in self.transitions.items()],
            "pending_values": dict(self.pending_values),
            "losses": list(self.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. Call `Steering.after_restore` next; it notifies the listeners."""
        for name, value in state["fields"].items():
            setattr(self, name, value)
        for one, saved in zip(self.optimizers, state["optimizers"], strict=True):
            one.restore(saved)
        for block, skip in state["skips"]:
            block.skip = skip
        self.transitions = {key: transition for key, transition, _ in state["transitions"]}
        for _, transition, steps_done in state["transitions"]:
            transition.restore(steps_done)
        self.pending_values = dict(state["pending_values"])
        self.losses = deque(state["losses"], maxlen=RECENT_LOSSES)

    def generator(self, knob: str) -> torch.Generator:
        """A generator of random numbers for a knob, seeded by the run's seed, the step and the knob.

        A replay therefore draws the same numbers. Adding a knob to the table changes the numbers of all knobs.
        """
        number = (self.seed * 1_000_003 + self.step) * len(KNOBS) + list(KNOBS).index(knob)
        return torch.Generator().manual_seed(number % 2**63)

    def change_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer from the next update on, in place of the first one."""
        self.optimizers[0].follow(optimizer)
        if self.setup is not None:
            self.setup.optimizer = optimizer
        for listener in self.optimizer_listeners:
            listener(optimizer)

    def update_parameters(self, changed: surgery.ParameterChanges) -> None:
        """Update the optimizer's parameters after a change of the net."""
        replace_parameters(self.optimizer, self.model, changed)
        self.version += 1

    def start_transition(self, knob: str, target: str, transition: surgery.Transition) -> None:
        """Start a transition. `advance` then continues it at every update."""
        self.transitions[knob, target] = transition
        self.version += 1

    def finish_transition(self, knob: str, target: str) -> None:
        """Complete the transition of this knob and target at once, if one is in progress."""
        if (transition := self.transitions.pop((knob, target), None)) is not None:
            transition.finish()

    @contextmanager
    def transitions_at_end(self) -> Iterator[None]:
        """A context in which every transition in progress is at its end."""
        transitions = list(self.transitions.values())
        for transition in transitions:
            transition.show(1.0)
        try:
            yield
        finally:
            for transition in transitions:
                transition.show(transition.steps_done / transition.steps)

    def advance(self, *, at_once: bool = False) -> None:
        """Advance every transition by one update; with `at_once` only those that take a single update."""
        for key, transition in list(self.transitions.items()):
            if (not at_once or transition.steps == 1) and transition.advance():
                del self.transitions[key]
                self.version += 1


def common_value(values: Iterable[str]) -> str:
    """The value if all `values` are equal, otherwise `mixed`."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "mixed"


def unavailable_in_user_loop(reason: str) -> str:
    """The text for a knob that is not available in a user loop."""
    return f"not available for your own loop: {reason}"
