"""What stands in and around a net's blocks: activation, skip connection, normalisation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, get_args

import msgspec
import torch
from torch import nn

from tui_descent.instruments.net_structure import is_activation
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.spec import Activation, ActivationSpec, NormSpec
from tui_descent.scenario.validate import nearest
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import KnobContext, Turned, common
from tui_descent.training.steering.surgery.residual import HasSkip, Way

_ROTATED = 0.5**0.5
_NAMES: dict[type[nn.Module], str] = {
    type(parts.activation(ActivationSpec(name=name))): name for name in get_args(Activation)
}


class ActivationKnob:
    """The activations of a built-in net's blocks, or an own net's activation modules."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The one of all, or `mixed`."""
        return self._of(self._places())

    def unavailable(self) -> str | None:
        """An activation that is a function within `forward` cannot be reached."""
        if self._places():
            return None
        kind = type(self._context.model).__name__
        return f"activation acts on modules such as nn.ReLU; {kind} has none that could be exchanged"

    def turn(self, turn: TurnKnob) -> Turned:
        """Blended over some updates, or exchanged at once."""
        places = self._targets(turn.target)
        way = turn.way or "blend"
        steps = surgery.BLEND_STEPS if way == "blend" else 1
        name: Activation = msgspec.convert(turn.value, Activation)
        old = self._of(places)
        for place in places:
            if self._name(place) == name:
                continue
            self._context.settle("activation", place)
            new = parts.activation(self._spec(name))
            block = self._context.blocks.get(place)
            if block is not None:
                transition = surgery.swap_activation(block, new, steps=steps)
            else:
                transition = surgery.swap_module(self._context.model, place, new, steps=steps)
            self._context.set_out("activation", place, transition)
            self._context.wished["activation", place] = name
        return Turned(old=old, new=self._of(places), way=way)

    def _spec(self, name: Activation) -> ActivationSpec:
        """With what the scenario says of that kind, leaky_relu's slope, whichever the net began with."""
        setup = self._context.setup
        said = getattr(setup.scenario.model, "activation", None) if setup is not None else None
        return msgspec.structs.replace(said or ActivationSpec(), name=name)

    def _places(self) -> list[str]:
        context = self._context
        if context.blocks:
            return [name for name, block in context.blocks.items() if block.activation is not None]
        under_way = [target for knob, target in context.under_way if knob == "activation"]
        return [
            name
            for name, module in context.model.named_modules()
            if name in under_way
            or (
                is_activation(module)
                and not isinstance(module, nn.Identity)
                and name
                and not any(True for _ in module.parameters())
                and not any(name.startswith(f"{place}.") for place in under_way)
            )
        ]

    def _targets(self, target: str) -> list[str]:
        places = self._places()
        if target == "all":
            return places
        if target in self._context.blocks and target not in places:
            raise ValueError(f"{target} is attention; it has no activation")
        return _one(target, places, "block" if self._context.blocks else "activation")

    def _of(self, places: Iterable[str]) -> str:
        return common(self._name(place) for place in places)

    def _name(self, place: str) -> str:
        if ("activation", place) in self._context.under_way:
            return self._context.wished["activation", place]
        block = self._context.blocks.get(place)
        module = self._context.model.get_submodule(place) if block is None else block.activation
        assert module is not None
        return _NAMES.get(type(module), type(module).__name__)


class ResidualKnob:
    """y = x + scale·f(x) around blocks, of a built-in net or of an own one."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """`on`, `off` or `mixed`."""
        return self._of(self._blocks())

    def unavailable(self) -> str | None:
        """A net without blocks, or a compiled one."""
        return None if self._blocks() else self._context.no_blocks

    def turn(self, turn: TurnKnob) -> Turned:
        """By the way asked for; `auto` stands for one of the others, which is told."""
        context, blocks = self._context, self._blocks()
        targets = list(blocks) if turn.target == "all" else _one(turn.target, blocks, "block")
        old = self._of(targets)
        way = self._way(turn, [blocks[t] for t in targets])
        scale = self._scale(turn, way)
        steps = surgery.WAY_STEPS[way]
        for target in targets:
            block = blocks[target]
            # The next one starts from the gate as it stands.
            context.under_way.pop(("residual", target), None)
            if turn.value == "on":
                context.set_out("residual", target, surgery.open_skip(block, scale, steps=steps, way=way))
            elif block.skip is not None:
                context.set_out("residual", target, surgery.close_skip(block, steps=steps, way=way))
            context.wished["residual", target] = turn.value
        return Turned(old=old, new=self._of(targets), way=way, scale=scale if turn.value == "on" else None)

    def _blocks(self) -> dict[str, HasSkip]:
        return cast("dict[str, HasSkip]", self._context.blocks or self._context.around)

    def _way(self, turn: TurnKnob, blocks: list[HasSkip]) -> Way:
        way = turn.way or "auto"
        if way != "auto":
            return cast("Way", way)
        if turn.value == "off":  # back by the way it came
            rotated = all(block.skip is not None and block.skip.gate == _ROTATED for block in blocks)
            return "rotation" if rotated else "ramp"
        context = self._context
        if turn.scale is not None or context.first_loss is None:
            return "ramp"
        now = sum(context.losses) / len(context.losses)
        return surgery.resolve_way(context.first_loss, now, len(self._blocks()))

    def _scale(self, turn: TurnKnob, way: str) -> float:
        usual = surgery.default_branch(way, len(self._blocks()))
        if way == "rotation" and turn.scale not in (None, usual) and turn.value == "on":
            raise ValueError(f"scale = {turn.scale:g}; allowed: a rotation ends at 1/√2 = {usual!r}; or another way")
        return usual if turn.scale is None else turn.scale

    def _of(self, targets: Iterable[str]) -> str:
        return common(self._name(target) for target in targets)

    def _name(self, target: str) -> str:
        if ("residual", target) in self._context.under_way:
            return self._context.wished["residual", target]
        return "off" if self._blocks()[target].skip is None else "on"


class NormKnob:
    """A normalisation in every block of a built-in net, at one place."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """`none`, `layer`, `rms` or `mixed`."""
        return self._of(self._context.blocks.values())

    def unavailable(self) -> str | None:
        """Only built-in blocks have places for one."""
        if self._context.blocks:
            return None
        kind = type(self._context.model).__name__
        return f"norm acts on the blocks of a built-in net; {kind} has none that can be steered"

    def turn(self, turn: TurnKnob) -> Turned:
        """At once; the optimizer takes over its weights, or lets go of them. Calibrated where the net does anything."""
        context = self._context
        names = list(context.blocks) if turn.target == "all" else _one(turn.target, context.blocks, "block")
        blocks = {name: context.blocks[name] for name in names}
        old = self._of(blocks.values())
        probe = None if context.setup is None else context.setup.probe_outputs_and_loss
        if turn.way == "calibrated" and probe is None:
            raise ValueError("way = calibrated needs a batch again, and an own loop's cannot be asked for; use instant")
        way = turn.way or self._way()
        first = next(iter(blocks.values()))
        where = turn.where or (first.where if first.norm is not None else "pre")
        spec = msgspec.convert({"name": turn.value, "where": where}, NormSpec)
        changed = surgery.set_norm(context.model, blocks, spec, probe=probe if way == "calibrated" else None)
        context.parameters_changed(changed)
        count = sum(p.numel() for p in (changed.added or changed.removed).values())
        note = f"{count} parameters {'came' if changed.added else 'went'}" if count else None
        none = turn.value == "none"
        return Turned(
            old=old,
            new=self._of(blocks.values()),
            way=None if none else way,
            where=None if none else where,
            note=note,
        )

    def _way(self) -> str:
        setup = self._context.setup
        if setup is None:
            return "instant"
        with torch.no_grad():
            return surgery.norm_way(float(setup.probe()), float(setup.loss_of_zero_outputs()))

    def _of(self, blocks: Iterable[Block]) -> str:
        return common(_norm_name(block.norm) for block in blocks)


def _norm_name(norm: nn.Module | None) -> str:
    if norm is None:
        return "none"
    return "rms" if isinstance(norm, nn.RMSNorm) else "layer"


def _one(target: str, known: Iterable[str], kind: str) -> list[str]:
    names = list(known)
    if target not in names:
        raise ValueError(f'no {kind} "{target[:60]}"; {kind}s are {names[0]} …{nearest(target, names)}')
    return [target]
