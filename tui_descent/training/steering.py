"""Turning a knob between two steps: check, change, read the value back. What cannot act says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import KnobState
from tui_descent.scenario import knobs
from tui_descent.scenario.spec import Activation, ActivationSpec
from tui_descent.scenario.validate import nearest
from tui_descent.training import surgery
from tui_descent.training.nets import parts
from tui_descent.training.nets.block import Block
from tui_descent.training.nets.mlp import default_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What a turn did, read back: the record keeps the resolved way and scale, so that it replays exactly."""

    old: str
    new: str
    way: str | None = None
    scale: float | None = None


class Rate:
    """The turned learning rate: a multiplier put on before the optimizer's step and taken off after it.

    So any scheduler, which sees only its own values, stays right, and the turn survives the scheduler's next step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: list[object] | None = None
        self.multiplier = 1.0

    @property
    def value(self) -> float:
        """The rate the next step will use: the first group's, times the multiplier."""
        lr = self._kept[0] if self._kept is not None else self._optimizer.param_groups[0]["lr"]
        return float(lr) * self.multiplier  # type: ignore[arg-type]

    def turn(self, text: str) -> None:
        """Set it, exactly or relative to now. Raises `ValueError` when it cannot be."""
        value = knobs.new_value(text, self.value)
        base = float(self._optimizer.param_groups[0]["lr"])
        if base == 0:
            raise ValueError("the schedule holds the learning rate at 0 now; no multiplier can change that")
        self.multiplier = value / base

    def put_on(self) -> None:
        """Before the optimizer's step. A step that raised left the multiplied rate in place: healed first."""
        self.take_off()
        if self.multiplier != 1.0:
            self._kept = [group["lr"] for group in self._optimizer.param_groups]
            for group in self._optimizer.param_groups:
                group["lr"] = group["lr"] * self.multiplier

    def take_off(self) -> None:
        """After it."""
        if self._kept is not None:
            for group, lr in zip(self._optimizer.param_groups, self._kept, strict=True):
                group["lr"] = lr
            self._kept = None


class Steering:
    """The knobs of one run. `pace` is in steps a second, None as fast as it goes."""

    # The version only grows: who made something for one of them must see that the net is another now.
    not_undone = ("pace", "version")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, pace: float | None = None) -> None:
        self.rate = Rate(optimizer)
        self.pace = pace
        self.version = 0  # of the network's structure: grows when modules come or go
        self._model = model
        self._blocks = {name: m for name, m in model.named_modules() if isinstance(m, Block)}
        self._residual = {name: "on" if block.skip else "off" for name, block in self._blocks.items()}
        self._activation = {name: _activation_name(block.activation) for name, block in self._blocks.items()}
        self._under_way: dict[tuple[str, str], surgery.Transition] = {}
        self._turns: Mapping[str, Callable[[TurnKnob], Turned]] = {
            "lr": self._turn_lr,
            "pace": self._turn_pace,
            "activation": self._turn_activation,
            "residual": self._turn_residual,
        }
        assert set(self._turns) == set(knobs.KNOBS)

    def states(self) -> tuple[KnobState, ...]:
        """Every knob's present value, or why it cannot act here."""
        return tuple(self._state(name) for name in knobs.KNOBS)

    def turn(self, turn: TurnKnob) -> Turned:
        """Turn one knob. Raises `ValueError`, with nothing changed, when it cannot be."""
        knob = knobs.KNOBS[knobs.check(turn).knob]
        if knob.needs == "blocks" and not self._blocks:
            raise ValueError(self._no_blocks(knob.name))
        return self._turns[turn.knob](turn)

    def advance(self) -> None:
        """Take every change that is under way one update further; called before each forward pass."""
        for key in [key for key, transition in self._under_way.items() if transition.advance()]:
            del self._under_way[key]
            self.version += 1

    def _state(self, name: str) -> KnobState:
        if knobs.KNOBS[name].needs == "blocks" and not self._blocks:
            return KnobState(name=name, unavailable=self._no_blocks(name))
        read: dict[str, Callable[[], str]] = {
            "lr": lambda: f"{self.rate.value:.6g}",
            "pace": self._pace_text,
            "activation": lambda: _common(v for v in self._activation.values() if v != "none"),
            "residual": lambda: _common(self._residual.values()),
        }
        return KnobState(name=name, value=read[name]())

    def _no_blocks(self, name: str) -> str:
        kind = type(self._model).__name__
        return f"{name} acts on the blocks of a built-in net; {kind} has none that can be steered"

    def _turn_lr(self, turn: TurnKnob) -> Turned:
        old = f"{self.rate.value:.6g}"
        self.rate.turn(turn.value)
        return Turned(old=old, new=f"{self.rate.value:.6g}")

    def _turn_pace(self, turn: TurnKnob) -> Turned:
        old = self._pace_text()
        self.pace = None if turn.value == "max" else float(turn.value)
        return Turned(old=old, new=self._pace_text())

    def _turn_activation(self, turn: TurnKnob) -> Turned:
        targets = self._targets(turn.target)
        name: Activation = msgspec.convert(turn.value, Activation)
        way = turn.way or "blend"
        if turn.target != "all" and self._activation[turn.target] == "none":
            raise ValueError(f"{turn.target} is attention; it has no activation")
        old = _common(v for t in targets if (v := self._activation[t]) != "none")
        for target in targets:
            if self._activation[target] in (name, "none"):
                continue
            self._settle("activation", target)
            new = parts.activation(ActivationSpec(name=name))
            steps = surgery.BLEND_STEPS if way == "blend" else 1
            self._set_out("activation", target, surgery.swap_activation(self._blocks[target], new, steps=steps))
            self._activation[target] = name
        return Turned(old=old, new=_common(v for t in targets if (v := self._activation[t]) != "none"), way=way)

    def _turn_residual(self, turn: TurnKnob) -> Turned:
        targets = self._targets(turn.target)
        way = turn.way or "ramp"
        steps = surgery.RESIDUAL_STEPS if way == "ramp" else 1
        scale = turn.scale if turn.scale is not None else default_scale(len(self._blocks))
        old = _common(self._residual[t] for t in targets)
        for target in targets:
            block = self._blocks[target]
            self._under_way.pop(("residual", target), None)  # the next one starts from the gate as it stands
            if turn.value == "on":
                self._set_out("residual", target, surgery.open_skip(block, scale, steps=steps))
            elif block.skip is not None:
                self._set_out("residual", target, surgery.close_skip(block, steps=steps))
            self._residual[target] = turn.value
        new = _common(self._residual[t] for t in targets)
        return Turned(old=old, new=new, way=way, scale=scale if turn.value == "on" else None)

    def _settle(self, knob: str, target: str) -> None:
        """A change of the same part that is still under way ends before the next begins."""
        if (transition := self._under_way.pop((knob, target), None)) is not None:
            transition.finish()

    def _set_out(self, knob: str, target: str, transition: surgery.Transition) -> None:
        self._under_way[knob, target] = transition
        self.version += 1

    def _targets(self, target: str) -> list[str]:
        if target == "all":
            return list(self._blocks)
        if target not in self._blocks:
            hint = nearest(target, self._blocks)
            raise ValueError(f'no block "{target[:60]}"; blocks are {next(iter(self._blocks))} …{hint}')
        return [target]

    def _pace_text(self) -> str:
        return "max" if self.pace is None else f"{self.pace:g}"


def _common(values: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "mixed"


def _activation_name(module: nn.Module | None) -> str:
    return {
        "ReLU": "relu",
        "LeakyReLU": "leaky_relu",
        "GELU": "gelu",
        "SiLU": "silu",
        "Sigmoid": "sigmoid",
        "Tanh": "tanh",
        "ELU": "elu",
        "Softplus": "softplus",
        "Identity": "identity",
        "NoneType": "none",
    }.get(type(module).__name__, type(module).__name__)
