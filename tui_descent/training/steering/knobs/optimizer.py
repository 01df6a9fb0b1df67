"""The knobs of the optimizer: its class, schedule, momentum, betas and weight decay, and gradient clipping."""

from __future__ import annotations

import math

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario import schedules as curves
from tui_descent.scenario.knobs import betas_text, new_value, pair, spec_of
from tui_descent.scenario.optimizers import known_rate, map_rate
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.optim import optimizers, schedules
from tui_descent.training.steering.knobs.context import KnobContext, Turned

LOOP_OWNS_OPTIMIZER = (
    "your loop owns its optimizer, so its class cannot be changed from here; "
    "its learning rate, momentum, betas and weight decay can"
)
LOOP_OWNS_SCHEDULE = "not available for your own loop: it sets its own rate and has no known end"


class OptimizerKnob:
    """The optimizer's class; the rate is converted and the state transferred by `optimizers.swap`."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The optimizer's name."""
        return optimizers.name_of(self._context.optimizer)

    def unavailable(self) -> str | None:
        """A user loop goes on calling the optimizer object that it made."""
        return None if self._context.setup is not None else LOOP_OWNS_OPTIMIZER

    def turn(self, turn: TurnKnob) -> Turned:
        """Replace the optimizer; the note tells how the rate was converted and which state was transferred."""
        context, old = self._context, self.value()
        if turn.value == old:
            return Turned(old=old, new=old, note="it is that one already")
        assert context.setup is not None
        before, known = context.rate.value, known_rate(context.setup.scenario.optimizer, turn.value)
        swapped = optimizers.swap(context.optimizer, turn.value, lr=known, model=context.model)
        schedule = context.setup.schedule
        moved = None if schedule is None else schedule.transfer_to(swapped.optimizer)
        context.change_optimizer(swapped.optimizer)
        context.setup.schedule = moved
        if known is not None:
            context.rate.multiplier = 1.0  # it belonged to the old optimizer's rate
        after = context.rate.value
        rate = map_rate(old, turn.value, before, known=None if known is None else after).text
        if known is not None and not math.isclose(after, known):
            rate += f", {known:.3g}, where the schedule has it"
        return Turned(old=old, new=self.value(), note=f"lr {rate}; {swapped.transferred}")


class ScheduleKnob:
    """The schedule, from the base rate over the steps that are left; the learning-rate knob multiplies it."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The schedule's name."""
        setup = self._context.setup
        return "constant" if setup is None or setup.schedule is None else setup.schedule.spec.name

    def unavailable(self) -> str | None:
        """A user loop has its own scheduler and no known end."""
        return None if self._context.setup is not None else LOOP_OWNS_SCHEDULE

    def turn(self, turn: TurnKnob) -> Turned:
        """Start the schedule now; the note describes its curve."""
        context, old = self._context, self.value()
        assert context.setup is not None
        assert context.steps is not None
        spec: ScheduleSpec = spec_of(turn)
        total = max(context.steps, context.step + 1)
        if wrong := curves.problems(spec, total - context.step, whole="the steps left"):
            raise ValueError("; ".join(f"{field}: {text}" for field, text in wrong))
        context.setup.schedule = schedules.make_schedule(
            spec, context.optimizer, total_steps=total, from_step=context.step
        )
        note = curves.about(spec, total - context.step)
        return Turned(old=old, new=self.value(), note=note)


class _Setting:
    """An option that some optimizers have and others do not."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """The option's number or numbers."""
        return self._read()

    def unavailable(self) -> str | None:
        """Why this optimizer has no such option."""
        try:
            self._read()
        except ValueError as error:
            return str(error)
        return None

    def turn(self, turn: TurnKnob) -> Turned:
        """Set the option and read it back."""
        old = self._read()
        self._write(turn.value)
        return Turned(old=old, new=self._read())

    def _read(self) -> str:
        raise NotImplementedError

    def _write(self, text: str) -> None:
        raise NotImplementedError


class MomentumKnob(_Setting):
    """Momentum μ of SGD, Nesterov and Muon."""

    def _read(self) -> str:
        return f"{optimizers.momentum_of(self._context.optimizer):.6g}"

    def _write(self, text: str) -> None:
        optimizer = self._context.optimizer
        optimizers.set_momentum(optimizer, new_value(text, optimizers.momentum_of(optimizer), knob="momentum"))


class BetasKnob(_Setting):
    """β₁ and β₂ of Adam, AdamW and Muon."""

    def _read(self) -> str:
        return betas_text(optimizers.betas_of(self._context.optimizer))

    def _write(self, text: str) -> None:
        optimizers.set_betas(self._context.optimizer, pair(text))


class WeightDecayKnob(_Setting):
    """Weight decay λ, through the gradient or decoupled from it as the optimizer defines it."""

    def _read(self) -> str:
        return f"{optimizers.weight_decay_of(self._context.optimizer):.6g}"

    def _write(self, text: str) -> None:
        optimizer = self._context.optimizer
        value = new_value(text, optimizers.weight_decay_of(optimizer), knob="weight_decay")
        optimizers.set_weight_decay(optimizer, value)


class ClipKnob:
    """The largest global gradient norm, above which gradients are scaled down."""

    def __init__(self, context: KnobContext) -> None:
        self._context = context

    def value(self) -> str:
        """A number, or `off`."""
        return "off" if self._context.clip is None else f"{self._context.clip:.6g}"

    def unavailable(self) -> str | None:
        """Gradients can be clipped before any optimizer's step."""
        return None

    def turn(self, turn: TurnKnob) -> Turned:
        """Set the limit, from the next step on."""
        context, old = self._context, self.value()
        if turn.value == "off":
            context.clip = None
        elif context.clip is None and turn.value[0] in "*/":
            raise ValueError(f"clip is off, so {turn.value} has nothing to change; allowed: a number > 0")
        else:
            context.clip = new_value(turn.value, context.clip or 0.0, knob="clip")
        return Turned(old=old, new=self.value())
