"""Weights drawn anew, frozen, pushed; and dropout between them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from tui_descent.instruments.curvature import Curvature
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import new_value
from tui_descent.scenario.spec import InitSpec
from tui_descent.scenario.validate import convert
from tui_descent.training.optim.parameter_groups import clear_state
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import KnobChange, KnobContext, common_value, not_in_user_loop

_NO_LAYERS = "a surface has one point and no layers"


def _trained(context: KnobContext) -> dict[str, nn.Parameter]:
    """The parameters the optimizer moves, by name."""
    held = {id(p) for group in context.optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in context.model.named_parameters() if id(p) in held}


class InitKnob:
    """Weights of the net or of one layer, drawn anew in place."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The last one for the whole net; `own` as an own net was made, `mixed` after a layer of its own."""
        return self._context.init or "own"

    def unavailable(self) -> str | None:
        """A surface's point is no weight matrix."""
        return _NO_LAYERS if isinstance(self._context.model, Surface) else None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """What the optimizer remembered of them is dropped."""
        context, old = self._context, self.value()
        layer = None if turn.target == "all" else turn.target
        spec = convert(InitSpec, {"name": turn.value}, "init", [])
        drawn = surgery.reinitialize(context.model, spec, context.generator("init"), layer=layer)
        named = dict(context.model.named_parameters())
        clear_state(context.optimizer, (named[name] for name in drawn))
        context.init = turn.value if layer is None or turn.value == old else "mixed"
        return KnobChange(old=old, new=turn.value, note=f"{len(drawn)} tensors drawn")


class FreezeKnob:
    """One layer's weights held as they are."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """Of the whole net."""
        return self._of(self._context.model)

    def unavailable(self) -> str | None:
        """A surface has nothing beside its point."""
        return _NO_LAYERS if isinstance(self._context.model, Surface) else None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """`off` without a layer lets all go that the optimizer would move."""
        context = self._context
        model = context.model
        if turn.target == "all":
            old = self.value()
            for parameter in _trained(context).values():
                parameter.requires_grad_(True)
            context.version += 1
            return KnobChange(old=old, new=self.value())
        module = _layer(model, turn.target)
        old = self._of(module)
        (surgery.freeze if turn.value == "on" else surgery.unfreeze)(model, turn.target)
        context.version += 1
        return KnobChange(old=old, new=self._of(module))

    def _of(self, module: nn.Module) -> str:
        return common_value("off" if p.requires_grad else "on" for p in module.parameters())


class KickKnob:
    """A small push: of every weight matrix at random, or of all weights along the most negative curvature."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The last kick's size; 0 before the first."""
        return self._context.last_kick

    def unavailable(self) -> str | None:
        """Everything that is trained can be pushed."""
        return None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """At once. `auto` is random, but on a surface, whose point is no weight matrix."""
        context, old = self._context, self.value()
        size = new_value(turn.value, float(old), knob="kick")
        surface = isinstance(context.model, Surface)
        way = turn.way or "auto"
        if way == "auto":
            way = "curvature" if surface else "random"
        if way == "curvature":
            note = self._down(size)
        elif surface:
            raise ValueError(f"{_NO_LAYERS} to push at random; kick={turn.value},way=curvature pushes it")
        else:
            note = f"{len(surgery.kick(context.model, context.generator('kick'), size=size))} weight matrices pushed"
        context.last_kick = f"{size:.6g}"
        return KnobChange(old=old, new=context.last_kick, way=way, note=note)

    def _down(self, size: float) -> str:
        """Along the eigenvector of λmin on the probe batch; a surface's point, whose norm means nothing, by `size`."""
        context = self._context
        if context.setup is None:
            raise ValueError(not_in_user_loop("gives no batch again and again, on which the curvature could be read"))
        generator = context.generator("kick")
        instrument = Curvature(context.setup.probe, list(context.model.parameters()), seed=generator.initial_seed())
        lowest = instrument.lowest()
        if lowest is None:
            raise ValueError("the curvature is not finite here; there is no direction to push along")
        read = f"λmin = {lowest.value:.3g} on the probe batch, off by {lowest.residual:.0e}, {lowest.products} products"
        if not lowest.negative:
            raise ValueError(f"no curvature is negative here, so no direction leads off a ridge: {read}")
        surgery.kick(
            context.model,
            generator,
            size=size,
            direction=lowest.direction,
            length=size if isinstance(context.model, Surface) else None,
            slope=lowest.slope,
        )
        return read


class DropoutKnob:
    """The share of numbers set to 0 in training."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The share in all blocks, or wherever an own net has some."""
        modules = [m for m in self._context.model.modules() if isinstance(m, _DropoutNd)]
        blocks = [m for m in self._context.model.modules() if isinstance(m, Block)]
        shares = [m.p for m in modules] + ([0.0] if any(b.dropout is None for b in blocks) else [])
        return common_value(f"{share:.6g}" for share in shares) if shares else "0"

    def unavailable(self) -> str | None:
        """Only blocks of a built-in net can get some; an own net has it or not."""
        if any(isinstance(m, Block | _DropoutNd) for m in self._context.model.modules()):
            return None
        return f"{type(self._context.model).__name__} has no nn.Dropout whose share could be set"

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Everywhere the same."""
        old = self.value()
        if old == "mixed" and turn.value[0] in "*/":
            raise ValueError(f"dropout is mixed; {turn.value} is relative to nothing; allowed: a share ≥ 0 and < 1")
        share = new_value(turn.value, 0.0 if old == "mixed" else float(old), knob="dropout")
        surgery.set_dropout(self._context.model, share)
        self._context.version += 1
        return KnobChange(old=old, new=self.value())


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f'no layer "{path[:60]}" in {type(model).__name__}') from None
