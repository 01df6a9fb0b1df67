"""The knobs that re-initialise, freeze or kick weights, and the dropout knob."""

from __future__ import annotations

from collections.abc import Iterable

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
from tui_descent.training.steering.knobs.context import (
    Knob,
    KnobChange,
    KnobContext,
    common_value,
    unavailable_in_user_loop,
)


def _optimized_parameters(context: KnobContext) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer holds, by name."""
    held = {id(p) for one in context.optimizers for p in one.parameters()}
    return {name: p for name, p in context.model.named_parameters() if id(p) in held}


class InitKnob(Knob):
    """Re-initialises the weights of the net or of one layer, in place."""

    def value(self) -> str:
        """The initialisation of the whole net: `own` for a user's net, `mixed` if layers differ."""
        return self._context.init or "own"

    def unavailable(self) -> str | None:
        """Not available for a surface, whose point is not a weight matrix."""
        return self._context.no_layers

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Draw new weights, and drop the optimizer state of the old ones."""
        context, old = self._context, self.value()
        layer = None if turn.target == "all" else turn.target
        spec = convert(InitSpec, {"name": turn.value}, "init", [])
        drawn = surgery.reinitialize(context.model, spec, context.generator("init"), layer=layer)
        named = dict(context.model.named_parameters())
        for one in context.optimizers:
            clear_state(one.optimizer, (named[name] for name in drawn))
        context.init = turn.value if layer is None or turn.value == old else "mixed"
        return KnobChange(old=old, new=turn.value, note=f"{len(drawn)} tensors re-initialised")


class FreezeKnob(Knob):
    """Stops training one layer's weights."""

    def value(self) -> str:
        """`on` if the whole net is frozen, `off` if nothing is, otherwise `mixed`."""
        return self._of(self._context.model.parameters())

    def unavailable(self) -> str | None:
        """Not available for a surface, which has no layers."""
        return self._context.no_layers

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether the layer or the whole net is already frozen, or already trained."""
        if turn.target != "all":
            return self._of(surgery.parameters_of(self._context.model, turn.target).values()) == turn.value
        return self.value() == turn.value

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Freeze or unfreeze one layer. `off` without a target unfreezes all parameters that the optimizer holds.

        Raises `ValueError` if some parameters are frozen but the optimizer holds none of these.
        """
        context = self._context
        model = context.model
        if turn.target == "all":
            old, held = self.value(), _optimized_parameters(context).values()
            if old != "off" and all(parameter.requires_grad for parameter in held):
                raise ValueError("the frozen weights are in no watched optimizer: add them in your script")
            for parameter in held:
                parameter.requires_grad_(True)
            context.version += 1
            return KnobChange(old=old, new=self.value())
        parameters = surgery.parameters_of(model, turn.target).values()
        old = self._of(parameters)
        (surgery.freeze if turn.value == "on" else surgery.unfreeze)(model, turn.target)
        context.version += 1
        return KnobChange(old=old, new=self._of(parameters))

    def _of(self, parameters: Iterable[nn.Parameter]) -> str:
        return common_value("off" if p.requires_grad else "on" for p in parameters)


class KickKnob(Knob):
    """Kicks weights: moves each weight matrix a little at random, or all weights along the most negative curvature."""

    def value(self) -> str:
        """The size of the last kick; 0 if there was none."""
        return self._context.last_kick

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Kick at once. `auto` means `random`, or `curvature` on a test surface, which has no weight matrix."""
        context, old = self._context, self.value()
        size = new_value(turn.value, float(old), knob="kick")
        surface = isinstance(context.model, Surface)
        way = turn.way or "auto"
        if way == "auto":
            way = "curvature" if surface else "random"
        if way == "curvature":
            note = self._kick_along_curvature(size)
        elif surface:
            raise ValueError(f"a test surface has no layers to kick at random; use kick={turn.value},way=curvature")
        else:
            note = f"kicked {len(surgery.kick(context.model, context.generator('kick'), size=size))} weight matrices"
        context.last_kick = f"{size:.6g}"
        return KnobChange(old=old, new=context.last_kick, way=way, note=note)

    def _kick_along_curvature(self, size: float) -> str:
        """Move all weights along the eigenvector of λmin on the probe batch, by `size` times their L2 norm.

        On a surface the distance is `size` itself, because the norm of a point has no meaning there. Returns the note
        for the user.
        """
        context = self._context
        if context.setup is None:
            raise ValueError(unavailable_in_user_loop("its batches cannot be replayed"))
        generator = context.generator("kick")
        instrument = Curvature(
            context.setup.curvature_probe, list(context.model.parameters()), seed=generator.initial_seed()
        )
        lowest = instrument.lowest()
        if lowest is None:
            raise ValueError("the curvature is not finite here, so there is no direction to kick along")
        note = f"λmin = {lowest.value:.3g} ± {lowest.residual * abs(lowest.value):.1g} on the probe batch"
        if not lowest.negative:
            raise ValueError(f"no curvature is negative here, so there is no direction to kick along: {note}")
        surgery.kick(
            context.model,
            generator,
            size=size,
            direction=lowest.direction,
            length=size if isinstance(context.model, Surface) else None,
            slope=lowest.slope,
        )
        return note


class DropoutKnob(Knob):
    """The dropout probability, set to the same value everywhere in the net."""

    def value(self) -> str:
        """The probability in all blocks, or in the `nn.Dropout` modules of a user's net."""
        modules = [m for m in self._context.model.modules() if isinstance(m, _DropoutNd)]
        blocks = [m for m in self._context.model.modules() if isinstance(m, Block)]
        probabilities = [m.p for m in modules] + ([0.0] if any(b.dropout is None for b in blocks) else [])
        return common_value(f"{p:.6g}" for p in probabilities) if probabilities else "0"

    def unavailable(self) -> str | None:
        """Not available for a user's net without `nn.Dropout`: only built-in blocks can get one."""
        if (reason := self._context.no_net) is not None:
            return reason
        if any(isinstance(m, Block | _DropoutNd) for m in self._context.model.modules()):
            return None
        return f"{type(self._context.model).__name__} has no nn.Dropout"

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether all of the net has this probability."""
        old = self.value()
        return old != "mixed" and new_value(turn.value, float(old), knob="dropout") == float(old)

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the probability everywhere in the net."""
        old = self.value()
        if old == "mixed" and turn.value[0] in "*/":
            raise ValueError(f"dropout is mixed, so {turn.value} has no value to scale; allowed: a number ≥ 0 and < 1")
        p = new_value(turn.value, 0.0 if old == "mixed" else float(old), knob="dropout")
        surgery.set_dropout(self._context.model, p)
        self._context.version += 1
        return KnobChange(old=old, new=self.value())
