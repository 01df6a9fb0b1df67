"""The optimizer's knobs: learning rate, optimizer class, momentum, betas, weight decay, schedule and clipping."""

from __future__ import annotations

import math
from abc import abstractmethod

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario import schedules as curves
from tui_descent.scenario.knobs import betas_text, new_value, pair, spec_of
from tui_descent.scenario.optimizers import known_rate, map_rate
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.optim import optimizers, schedules
from tui_descent.training.steering.knobs.context import Knob, KnobChange

LOOP_OWNS_OPTIMIZER = (
    "your loop owns its optimizer, so its class cannot be changed from here; "
    "its learning rate, momentum, betas and weight decay can"
)
LOOP_OWNS_SCHEDULE = "not available for your own loop: it sets its own rate and has no known end"


class RateKnob(Knob):
    """The learning rate. The knob multiplies the schedule's rate; the schedule stays in effect."""

    def value(self) -> str:
        """The learning rate of the next step."""
        return f"{self._context.rate.value:.6g}"

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the rate to a number, or relative to the current rate."""
        old = self.value()
        self._context.rate.turn(turn.value)
        return KnobChange(old=old, new=self.value())


class OptimizerKnob(Knob):
    """The optimizer's class. `optimizers.swap` converts the learning rate and transfers the state."""

    def value(self) -> str:
        """The optimizer's name in the knobs table."""
        return optimizers.name_of(self._context.optimizer)

    def unavailable(self) -> str | None:
        """Not available in a user loop, since the loop keeps calling the optimizer object that it created."""
        return None if self._context.setup is not None else LOOP_OWNS_OPTIMIZER

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Replace the optimizer. The note says how the rate was converted and which state was transferred."""
        context, old = self._context, self.value()
        if turn.value == old:
            return KnobChange(old=old, new=old, note="already set")
        assert context.setup is not None
        rate_before, known = context.rate.value, known_rate(context.setup.scenario.optimizer, turn.value)
        swapped = optimizers.swap(context.optimizer, turn.value, lr=known, model=context.model)
        schedule = context.setup.schedule
        schedule = None if schedule is None else schedule.transfer_to(swapped.optimizer)
        context.change_optimizer(swapped.optimizer)
        context.setup.schedule = schedule
        if known is not None:
            context.rate.multiplier = 1.0  # the old multiplier was chosen for the old optimizer
        rate = context.rate.value
        note = map_rate(old, turn.value, rate_before, known=None if known is None else rate).text
        if known is not None and not math.isclose(rate, known):
            note += f", {known:.3g} times the schedule's factor"
        return KnobChange(old=old, new=self.value(), note=f"lr {note}; {swapped.transferred}")


class ScheduleKnob(Knob):
    """The schedule. It starts at the base rate and covers the remaining steps. The learning-rate knob multiplies it."""

    def value(self) -> str:
        """The schedule's name."""
        setup = self._context.setup
        return "constant" if setup is None or setup.schedule is None else setup.schedule.spec.name

    def unavailable(self) -> str | None:
        """Not available in a user loop, since the loop has its own scheduler and no known number of steps."""
        return None if self._context.setup is not None else LOOP_OWNS_SCHEDULE

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Start the schedule at the next step. The note describes its curve."""
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
        return KnobChange(old=old, new=self.value(), note=note)


class _OptimizerOption(Knob):
    """An option that not all optimizers have."""

    def unavailable(self) -> str | None:
        """The reason, if this optimizer does not have the option."""
        try:
            self.value()
        except ValueError as error:
            return str(error)
        return None

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the option for all parameter groups."""
        old = self.value()
        self._set(turn.value)
        return KnobChange(old=old, new=self.value())

    @abstractmethod
    def _set(self, text: str) -> None: ...


class MomentumKnob(_OptimizerOption):
    """The momentum μ of SGD, Nesterov and Muon."""

    def value(self) -> str:
        return f"{optimizers.momentum_of(self._context.optimizer):.6g}"

    def _set(self, text: str) -> None:
        optimizer = self._context.optimizer
        optimizers.set_momentum(optimizer, new_value(text, optimizers.momentum_of(optimizer), knob="momentum"))


class BetasKnob(_OptimizerOption):
    """β₁ and β₂ of Adam, AdamW and Muon."""

    def value(self) -> str:
        return betas_text(optimizers.betas_of(self._context.optimizer))

    def _set(self, text: str) -> None:
        optimizers.set_betas(self._context.optimizer, pair(text))


class WeightDecayKnob(_OptimizerOption):
    """The weight decay λ. The optimizer either adds it to the gradient or applies it to the weights directly."""

    def value(self) -> str:
        return f"{optimizers.weight_decay_of(self._context.optimizer):.6g}"

    def _set(self, text: str) -> None:
        optimizer = self._context.optimizer
        value = new_value(text, optimizers.weight_decay_of(optimizer), knob="weight_decay")
        optimizers.set_weight_decay(optimizer, value)


class ClipKnob(Knob):
    """The limit of the global gradient norm. If the norm is above it, the gradients are scaled down."""

    def value(self) -> str:
        """A number, or `off`."""
        return "off" if self._context.clip is None else f"{self._context.clip:.6g}"

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the limit from the next step on."""
        context, old = self._context, self.value()
        if turn.value == "off":
            context.clip = None
        elif context.clip is None and turn.value[0] in "*/":
            raise ValueError(f"clip is off, so {turn.value} has nothing to scale; allowed: a number > 0")
        else:
            context.clip = new_value(turn.value, context.clip or 0.0, knob="clip")
        return KnobChange(old=old, new=self.value())
