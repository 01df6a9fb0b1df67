"""The knobs that change a net's blocks: activation, residual and norm layer."""

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
from tui_descent.training.steering.knobs.context import Knob, KnobChange, common_value
from tui_descent.training.steering.surgery.residual import HasSkip, Way

_ROTATED_GATE = 0.5**0.5  # the gate of a skip after a rotation
_NAMES: dict[type[nn.Module], str] = {
    type(parts.activation(ActivationSpec(name=name))): name for name in get_args(Activation)
}


class ActivationKnob(Knob):
    """The activations of a built-in net's blocks, or the activation modules of a user's net.

    A path is the name of a block in a built-in net, or of an activation module in a user's net.
    """

    def value(self) -> str:
        """The name of the activation if all are the same, otherwise `mixed`."""
        return self._value_of(self._paths())

    def unavailable(self) -> str | None:
        """Not available if the net has no activation modules, but only calls functions in `forward`."""
        if self._paths():
            return None
        kind = type(self._context.model).__name__
        return f"activation replaces modules such as nn.ReLU; {kind} has none"

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all targets have, or are changing to, this activation."""
        return self._value_of(self._targets(turn.target)) == turn.value

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Replace the activations, at once or by a transition over `BLEND_STEPS` updates."""
        paths = self._targets(turn.target)
        way = turn.way or "blend"
        steps = surgery.BLEND_STEPS if way == "blend" else 1
        name: Activation = msgspec.convert(turn.value, Activation)
        old = self._value_of(paths)
        for path in paths:
            if self._name(path) == name:
                continue
            self._context.finish_transition("activation", path)
            new = parts.activation(self._spec(name))
            block = self._context.blocks.get(path)
            if block is not None:
                transition = surgery.swap_activation(block, new, steps=steps)
            else:
                transition = surgery.swap_module(self._context.model, path, new, steps=steps)
            self._context.start_transition("activation", path, transition)
            self._context.pending_values["activation", path] = name
        return KnobChange(old=old, new=self._value_of(paths), way=way)

    def _spec(self, name: Activation) -> ActivationSpec:
        """The scenario's activation settings, such as leaky_relu's slope, with another name."""
        setup = self._context.setup
        spec = getattr(setup.scenario.model, "activation", None) if setup is not None else None
        return msgspec.structs.replace(spec or ActivationSpec(), name=name)

    def _paths(self) -> list[str]:
        context = self._context
        if context.blocks:
            return [name for name, block in context.blocks.items() if block.activation is not None]
        in_transition = [target for knob, target in context.transitions if knob == "activation"]
        return [
            name
            for name, module in context.model.named_modules()
            if name in in_transition
            or (
                is_activation(module)
                and not isinstance(module, nn.Identity)
                and name
                and not any(True for _ in module.parameters())
                and not any(name.startswith(f"{path}.") for path in in_transition)
            )
        ]

    def _targets(self, target: str) -> list[str]:
        paths = self._paths()
        if target == "all":
            return paths
        if target in self._context.blocks and target not in paths:
            raise ValueError(f"{target} is an attention block; it has no activation")
        return _single_target(target, paths, "block" if self._context.blocks else "activation")

    def _value_of(self, paths: Iterable[str]) -> str:
        return common_value(self._name(path) for path in paths)

    def _name(self, path: str) -> str:
        if ("activation", path) in self._context.transitions:
            return self._context.pending_values["activation", path]
        block = self._context.blocks.get(path)
        module = self._context.model.get_submodule(path) if block is None else block.activation
        assert module is not None
        return _NAMES.get(type(module), type(module).__name__)


class ResidualKnob(Knob):
    """Skip connections y = x + scale·f(x) around the blocks of a built-in net or of a user's net."""

    def value(self) -> str:
        """`on`, `off` or `mixed`."""
        return self._value_of(self._blocks())

    def unavailable(self) -> str | None:
        """Not available if the net has no blocks. In a compiled net none can be found."""
        return None if self._blocks() else self._context.no_blocks_reason

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all targets have, or are changing to, this value. A scale or a way asks for more than the value."""
        blocks = self._blocks()
        targets = list(blocks) if turn.target == "all" else _single_target(turn.target, blocks, "block")
        plain = turn.value == "off" or (turn.scale is None and turn.way in (None, "auto"))
        return plain and self._value_of(targets) == turn.value

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Open or close the skips. The result contains the way that was chosen for `auto`."""
        context, blocks = self._context, self._blocks()
        targets = list(blocks) if turn.target == "all" else _single_target(turn.target, blocks, "block")
        old = self._value_of(targets)
        way = self._way(turn, [blocks[t] for t in targets])
        scale = self._scale(turn, way)
        steps = surgery.WAY_STEPS[way]
        for target in targets:
            block = blocks[target]
            # An unfinished transition is discarded; the new one starts from the skip's current gate and branch.
            context.transitions.pop(("residual", target), None)
            if turn.value == "on":
                context.start_transition("residual", target, surgery.open_skip(block, scale, steps=steps, way=way))
            elif block.skip is not None:
                context.start_transition("residual", target, surgery.close_skip(block, steps=steps, way=way))
            context.pending_values["residual", target] = turn.value
        return KnobChange(old=old, new=self._value_of(targets), way=way, scale=scale if turn.value == "on" else None)

    def _blocks(self) -> dict[str, HasSkip]:
        return cast("dict[str, HasSkip]", self._context.blocks or self._context.user_blocks)

    def _way(self, turn: TurnKnob, blocks: list[HasSkip]) -> Way:
        way = turn.way or "auto"
        if way != "auto":
            return cast("Way", way)
        if turn.value == "off":  # a skip is closed in the way in which it was opened
            rotated = all(block.skip is not None and block.skip.gate == _ROTATED_GATE for block in blocks)
            return "rotation" if rotated else "ramp"
        context = self._context
        if turn.scale is not None or context.first_loss is None:
            return "ramp"
        loss = sum(context.losses) / len(context.losses)
        return surgery.resolve_way(context.first_loss, loss, len(self._blocks()))

    def _scale(self, turn: TurnKnob, way: str) -> float:
        default = surgery.default_scale(way, len(self._blocks()))
        if way == "rotation" and turn.scale not in (None, default) and turn.value == "on":
            raise ValueError(
                f"scale = {turn.scale:g}; a rotation always ends at 1/√2 = {default!r}; choose another way"
            )
        return default if turn.scale is None else turn.scale

    def _value_of(self, targets: Iterable[str]) -> str:
        return common_value(self._on_or_off(target) for target in targets)

    def _on_or_off(self, target: str) -> str:
        if ("residual", target) in self._context.transitions:
            return self._context.pending_values["residual", target]
        return "off" if self._blocks()[target].skip is None else "on"


class NormKnob(Knob):
    """The norm layer in each block of a built-in net, and its place in the block."""

    def value(self) -> str:
        """`none`, `layer`, `rms` or `mixed`."""
        return self._value_of(self._context.blocks.values())

    def unavailable(self) -> str | None:
        """Available only for built-in nets, since only their blocks have a place for a norm layer."""
        if self._context.blocks:
            return None
        kind = type(self._context.model).__name__
        return f"norm acts on the blocks of a built-in net; {kind} has none"

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all targets have this norm layer, in this place. A way asks for new ones."""
        blocks = self._context.blocks
        names = list(blocks) if turn.target == "all" else _single_target(turn.target, blocks, "block")
        chosen = [blocks[name] for name in names]
        there = turn.where is None or all(block.where == turn.where for block in chosen)
        none = turn.value == "none"
        return self._value_of(chosen) == turn.value and (none or (turn.way is None and there))

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Add, replace or remove norm layers at once, together with their parameters in the optimizer.

        By default, once the net has learned something (see `norm_way`), new norm layers are calibrated: initialised so
        that the net's outputs hardly change.
        """
        context = self._context
        names = list(context.blocks) if turn.target == "all" else _single_target(turn.target, context.blocks, "block")
        blocks = {name: context.blocks[name] for name in names}
        old = self._value_of(blocks.values())
        probe = None if context.setup is None else context.setup.probe_outputs_and_loss
        if turn.way == "calibrated" and probe is None:
            raise ValueError(
                "way = calibrated is not available for your own loop: its batches cannot be replayed; use instant"
            )
        way = turn.way or self._default_way()
        first = next(iter(blocks.values()))
        where = turn.where or (first.where if first.norm is not None else "pre")
        spec = msgspec.convert({"name": turn.value, "where": where}, NormSpec)
        changed = surgery.set_norm(context.model, blocks, spec, probe=probe if way == "calibrated" else None)
        context.update_parameters(changed)
        count = sum(p.numel() for p in (changed.added or changed.removed).values())
        note = f"{count} parameters {'added' if changed.added else 'removed'}" if count else None
        removed = turn.value == "none"
        return KnobChange(
            old=old,
            new=self._value_of(blocks.values()),
            way=None if removed else way,
            where=None if removed else where,
            note=note,
        )

    def _default_way(self) -> str:
        setup = self._context.setup
        if setup is None:
            return "instant"
        with torch.no_grad():
            return surgery.norm_way(float(setup.probe()), float(setup.loss_of_zero_outputs()))

    def _value_of(self, blocks: Iterable[Block]) -> str:
        return common_value(_norm_name(block.norm) for block in blocks)


def _norm_name(norm: nn.Module | None) -> str:
    if norm is None:
        return "none"
    return "rms" if isinstance(norm, nn.RMSNorm) else "layer"


def _single_target(target: str, known: Iterable[str], kind: str) -> list[str]:
    """A list with only `target`. Raises `ValueError` if it is not one of the `known` names."""
    names = list(known)
    if target not in names:
        raise ValueError(f'no {kind} "{target[:60]}"; {kind}s are {names[0]} …{nearest(target, names)}')
    return [target]
