"""The knobs that change a net's blocks: activation, residual and norm layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, get_args

import msgspec
import torch
from torch import nn

from tui_descent.instruments.net_structure import is_activation
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.layer_names import in_words
from tui_descent.scenario.spec import Activation, ActivationSpec, NormSpec
from tui_descent.scenario.validate import nearest
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import Knob, KnobChange, common_value
from tui_descent.training.steering.surgery.residual import HasSkip, Way

OWN_SKIP = "adds its input in its own code"
_ROTATED_GATE = 0.5**0.5  # the gate of a skip after a rotation
_NAMES: dict[type[nn.Module], str] = {
    type(parts.activation(ActivationSpec(name=name))): name for name in get_args(Activation)
}


class ActivationKnob(Knob):
    """The activations of a built-in net's blocks, or the hidden activation modules of a user's net.

    A path is the name of a block in a built-in net, or of an activation module in a user's net. In a user's net, an
    activation that is a gate or the net's output is left alone, because the code after it relies on its range.
    """

    def value(self) -> str:
        """The name of the activation if all are the same, otherwise `mixed`."""
        return self._value_of(self._paths())

    def unavailable(self) -> str | None:
        """Not available if the net has no hidden activation modules, for example because it only calls functions."""
        if self._paths():
            return None
        if (reason := self._context.no_net) is not None:
            return reason
        if left := self.leaves_alone():
            name, reason = next(iter(left.items()))
            return f"none may change; {name[-20:]}: {reason.partition(' (')[0]}"
        return "no activation modules; F.relu etc. cannot be changed"

    def acts_on(self) -> tuple[str, ...]:
        """The hidden activation modules of a user's net."""
        return () if self._context.blocks else tuple(self._paths())

    def leaves_alone(self) -> dict[str, str]:
        """The other activation modules of a user's net."""
        return {} if self._context.blocks else dict(self._context.observation.left)

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
        note = None if self._context.blocks else self._note(paths, steps)
        return KnobChange(old=old, new=self._value_of(paths), way=way, note=note)

    def _note(self, paths: list[str], steps: int) -> str:
        """A note that says which modules of a user's net were changed, and from which step on the net consists of plain
        modules again.
        """
        left = len(self.leaves_alone())
        note = f"{_listed(paths)}; {left} left alone" if left else _listed(paths)
        if steps == 1:
            return note
        return f"{note}; models saved before step {self._context.step + steps} need tui_descent"

    def _spec(self, name: Activation) -> ActivationSpec:
        """The scenario's activation settings, such as leaky_relu's slope, with another name."""
        setup = self._context.setup
        spec = getattr(setup.scenario.model, "activation", None) if setup is not None else None
        return msgspec.structs.replace(spec or ActivationSpec(), name=name)

    def _paths(self) -> list[str]:
        context = self._context
        if context.blocks:
            return [name for name, block in context.blocks.items() if block.activation is not None]
        seen = context.observation
        whole = {*seen.custom, *(target for knob, target in context.transitions if knob == "activation")}
        return [
            name
            for name, module in context.model.named_modules()
            if name in whole
            or (
                is_activation(module)
                and not isinstance(module, nn.Identity)
                and name
                and not any(True for _ in module.parameters())
                and not any(name.startswith(f"{path}.") for path in whole)
            )
            if name not in seen.left
        ]

    def _targets(self, target: str) -> list[str]:
        paths = self._paths()
        if target == "all":
            return paths
        if self._context.blocks:
            if target in self._context.blocks and target not in paths:
                raise ValueError(f"{in_words(target)} is an attention block; it has no activation")
            return _single_target(target, paths, "block")
        if inside := [path for path in paths if path == target or path.startswith(f"{target}.")]:
            return inside
        for name, reason in self.leaves_alone().items():
            if name == target or name.startswith(f"{target}."):
                raise ValueError(f"left alone: {reason}")
        return _single_target(target, paths, "activation")

    def _value_of(self, paths: Iterable[str]) -> str:
        return common_value(self._name(path) for path in paths)

    def _name(self, path: str) -> str:
        if ("activation", path) in self._context.transitions:
            return self._context.pending_values["activation", path]
        block = self._context.blocks.get(path)
        module = self._context.model.get_submodule(path) if block is None else block.activation
        assert module is not None
        return _NAMES.get(type(module)) or self._context.observation.custom.get(path) or type(module).__name__


class ResidualKnob(Knob):
    """Skip connections y = x + scale·f(x) around the blocks of a built-in net or of a user's net.

    A block of a user's net that adds its input in its own code is left alone.
    """

    def value(self) -> str:
        """`on`, `off` or `mixed`; `own` if the blocks add their input in their own code."""
        return self._value_of(self._blocks())

    def unavailable(self) -> str | None:
        """Not available if the net has no blocks. In a compiled net none can be found."""
        return None if self._blocks() else self._context.no_net or self._context.no_blocks_reason

    def acts_on(self) -> tuple[str, ...]:
        """The blocks of a user's net that can get a skip."""
        return tuple(name for name in self._context.user_blocks if name not in self._own())

    def leaves_alone(self) -> dict[str, str]:
        """The blocks of a user's net that have their own skip."""
        return dict.fromkeys(sorted(self._own()), OWN_SKIP)

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all targets have, or are changing to, this value. False if the command also gives a scale or a way,
        which may differ from the current one.
        """
        plain = turn.value == "off" or (turn.scale is None and turn.way in (None, "auto"))
        return plain and self._value_of(self._targets(turn.target)) == turn.value

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Open or close the skips. The result contains the way that was chosen for `auto`."""
        context, blocks, targets = self._context, self._blocks(), self._targets(turn.target)
        old = self._value_of(targets)
        if turn.value == "on" and turn.way == "rezero":
            return self._rezero(turn, targets, old)
        if learnt := [context.blocks[t] for t in targets if t in context.blocks and surgery.is_learnt(blocks[t])]:
            context.update_parameters(surgery.fix_branches(context.model, learnt))
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
        scale_used = scale if turn.value == "on" else None
        note = None if context.blocks else self._note(targets, turn.value)
        return KnobChange(old=old, new=self._value_of(targets), way=way, scale=scale_used, note=note)

    def _rezero(self, turn: TurnKnob, targets: list[str], old: str) -> KnobChange:
        """Give blocks of a built-in net a skip whose branch is learnt."""
        context = self._context
        if not context.blocks:
            raise ValueError("rezero adds parameters, which only built-in nets can have: choose another way")
        if turn.scale is not None:
            raise ValueError(f"scale = {turn.scale:g}; with rezero the scale is learnt and starts at 0; leave it out")
        for target in targets:
            context.transitions.pop(("residual", target), None)
        changed = surgery.put_rezero(context.model, [context.blocks[t] for t in targets])
        context.update_parameters(changed)
        note = f"{len(changed.added)} parameters added" if changed.added else None
        return KnobChange(old=old, new=self._value_of(targets), way="rezero", note=note)

    def _note(self, targets: list[str], value: str) -> str:
        """A note that says which blocks of a user's net were changed, and what that means for files with the net."""
        note = f"{_listed(targets)}; {len(self._own())} left alone" if self._own() else _listed(targets)
        return f"{note}; saved models need tui_descent, copies by run.plain do not" if value == "on" else note

    def _targets(self, target: str) -> list[str]:
        """The blocks to change. Raises `ValueError` if there are none."""
        blocks = self._blocks()
        targets = list(blocks) if target == "all" else _single_target(target, blocks, "block")
        open_to_change = [name for name in targets if name not in self._own()]
        if not open_to_change:
            raise ValueError(f"{'each block' if target == 'all' else 'it'} {OWN_SKIP}")
        return open_to_change

    def _own(self) -> set[str]:
        return self._context.observation.own_skips & self._context.user_blocks.keys()

    def _blocks(self) -> dict[str, HasSkip]:
        return cast("dict[str, HasSkip]", self._context.blocks or self._context.user_blocks)

    def _way(self, turn: TurnKnob, blocks: list[HasSkip]) -> Way:
        way = turn.way or "auto"
        if way != "auto":
            return cast("Way", way)
        if turn.value == "off":  # a skip is closed in the same way in which it was opened
            rotated = all(block.skip is not None and block.skip.gate == _ROTATED_GATE for block in blocks)
            return "rotation" if rotated else "ramp"
        context = self._context
        if turn.scale is not None or context.first_loss is None:
            return "ramp"
        loss = sum(context.losses) / len(context.losses)
        return surgery.resolve_way(context.first_loss, loss, len(self._targets("all")))

    def _scale(self, turn: TurnKnob, way: str) -> float:
        default = surgery.default_scale(way, len(self._targets("all")))
        if way == "rotation" and turn.scale not in (None, default) and turn.value == "on":
            raise ValueError(
                f"scale = {turn.scale:g}; a rotation always ends at 1/√2 = {default!r}; choose another way"
            )
        return default if turn.scale is None else turn.scale

    def _value_of(self, targets: Iterable[str]) -> str:
        return common_value(self._on_or_off(target) for target in targets)

    def _on_or_off(self, target: str) -> str:
        if target in self._own():
            return "own"
        if ("residual", target) in self._context.transitions:
            return self._context.pending_values["residual", target]
        return "off" if self._blocks()[target].skip is None else "on"


class NormKnob(Knob):
    """The norm layer in each block of a built-in net, and its place in the block."""

    def value(self) -> str:
        """`none`, `layer`, `rms` or `mixed`."""
        return self._value_of(self._context.blocks.values())

    def unavailable(self) -> str | None:
        """Not available for a user's net, because only the blocks of built-in nets have a place for a norm layer."""
        if self._context.blocks:
            return None
        return self._context.no_net or "only built-in nets have a place for new norm layers"

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all targets have this norm layer in this place. False if the command also gives a way, which asks for
        new norm layers.
        """
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


def _listed(names: list[str]) -> str:
    """The names as text: `2 modules: act.0, act.1`. If there are many, only the first and the last one."""
    count = f"{len(names)} module{'s' * (len(names) > 1)}: "
    return count + (", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}")


def _single_target(target: str, known: Iterable[str], kind: str) -> list[str]:
    """A list with only `target`. Raises `ValueError` if it is not one of the `known` names."""
    names = list(known)
    if target not in names:
        raise ValueError(f'no {kind} "{target[:60]}"; {kind}s are {names[0]} …{nearest(target, names)}')
    return [target]
