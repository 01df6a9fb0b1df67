"""The optimizer's knobs: learning rate, optimizer class, momentum, betas, weight decay, schedule and clipping."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario import schedules as curves
from tui_descent.scenario.knobs import betas_text, new_value, pair, spec_of
from tui_descent.scenario.optimizers import all_rates_text, known_rate, map_rate
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.optim import optimizers, schedules
from tui_descent.training.steering.knobs.context import Knob, KnobChange
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer

LOOP_OWNS_OPTIMIZER = (
    "your loop owns its optimizer, so its class cannot be changed from here; "
    "its learning rate, momentum, betas and weight decay can"
)
LOOP_OWNS_SCHEDULE = "not available for your own loop: it sets its own rate and has no known end"


class _PerOptimizer(Knob):
    """A setting that each optimizer of a run has separately. Without a target, a command changes it in all."""

    @abstractmethod
    def _refusal(self, one: SteeredOptimizer) -> str | None:
        """Why an optimizer does not have the setting; None if it has it."""

    @abstractmethod
    def _value(self, one: SteeredOptimizer) -> str:
        """An optimizer's current setting."""

    @abstractmethod
    def _set(self, one: SteeredOptimizer, text: str) -> None:
        """Change the setting of one optimizer. Raises `ValueError` with the reason if this fails."""

    def unavailable(self) -> str | None:
        """The reason, if no optimizer of the run has the setting."""
        reasons = [self._refusal(one) for one in self._context.optimizers]
        if None in reasons:
            return None
        reason = reasons[0] or ""
        # In a user loop the class of the optimizer cannot be changed, so advice to change it would be wrong.
        return reason if self._context.setup is not None else reason.partition("; try optimizer=")[0]

    def value(self) -> str:
        """The common value of all optimizers that have the setting, or the value of each."""
        return self._values(self._having(self._context.optimizers))

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Change the setting of the target, or of all optimizers that have it."""
        targets = self._context.targeted(turn.target)
        chosen = self._having(targets)
        if not chosen:
            raise ValueError(self._refusal(targets[0]) or "")
        old, before = self._values(chosen), [self._value(one) for one in chosen]
        settings = [(one, one.clip, one.rate.multiplier) for one in chosen]
        try:
            self._change(chosen, turn.value)
        except ValueError:
            for one, clip, multiplier in settings:
                one.clip, one.rate.multiplier = clip, multiplier
            raise
        changed = [
            (one.target, was, self._value(one)) for one, was in zip(chosen, before, strict=True) if len(chosen) > 1
        ]
        return KnobChange(old=old, new=self._values(chosen), each=tuple(changed))

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether every targeted optimizer has this value already."""
        chosen = self._having(self._context.targeted(turn.target))
        return bool(chosen) and all(self._is_set(one, turn.value) for one in chosen)

    def _change(self, chosen: list[SteeredOptimizer], text: str) -> None:
        for one in chosen:
            self._set(one, text)

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        return text == self._value(one)

    def _having(self, optimizers: list[SteeredOptimizer]) -> list[SteeredOptimizer]:
        return [one for one in optimizers if self._refusal(one) is None]

    def _values(self, chosen: list[SteeredOptimizer]) -> str:
        values = [self._value(one) for one in chosen]
        if len(set(values)) == 1:
            return values[0]
        return ", ".join(f"{one.name} {value}" for one, value in zip(chosen, values, strict=True))


class RateKnob(_PerOptimizer):
    """The learning rate. The knob multiplies the rates that the schedule or the script has set; both stay in effect.

    All parameter groups of an optimizer are multiplied by the same factor. Without a target, all optimizers are
    multiplied by the same factor; an exact rate is then the rate of the first optimizer.
    """

    def value(self) -> str:
        """The learning rate of the next step; the first optimizer's if there are several."""
        return self._value(self._having(self._context.optimizers)[0])

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Set the rate to a number, or relative to the current rate. The note lists the rates if there are several."""
        change = super().turn(turn)
        rates = {one.name: one.rate.rates for one in self._having(self._context.targeted(turn.target))}
        if len(rates) > 1:
            _, old, new = change.each[0]
            change = replace(change, old=old, new=new)
        several = len({rate for groups in rates.values() for rate in groups}) > 1
        return change.with_note(f"now {all_rates_text(rates)}") if several or len(rates) > 1 else change

    def _refusal(self, one: SteeredOptimizer) -> str | None:
        return one.rate.refusal()

    def _value(self, one: SteeredOptimizer) -> str:
        return f"{one.rate.value:.6g}"

    def _set(self, one: SteeredOptimizer, text: str) -> None:
        one.rate.turn(text)

    def _change(self, chosen: list[SteeredOptimizer], text: str) -> None:
        first, *others = chosen
        before = first.rate.multiplier
        first.rate.turn(text)
        factor = text if text[:1] in ("*", "/") else f"*{first.rate.multiplier / before!r}"
        for one in others:
            one.rate.turn(factor)

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        value = one.rate.value
        return value > 0 and new_value(text, value) == value


class OptimizerKnob(Knob):
    """The optimizer's class. `optimizers.swap` converts the learning rate and transfers the state."""

    def value(self) -> str:
        """The optimizer's name in the knobs table."""
        return optimizers.name_of(self._context.optimizer)

    def unavailable(self) -> str | None:
        """Not available in a user loop, since the loop keeps calling the optimizer object that it created."""
        return None if self._context.setup is not None else LOOP_OWNS_OPTIMIZER

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether this is the current optimizer."""
        return turn.value == self.value()

    def turn(self, turn: TurnKnob) -> KnobChange:
        """Replace the optimizer. The note says how the rate was converted and which state was transferred."""
        context, old = self._context, self.value()
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

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether the rate is already constant. For any other schedule False, because it would start again from its
        first step.
        """
        return turn.value == self.value() == "constant"

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


class MomentumKnob(_PerOptimizer):
    """The momentum μ of SGD, Nesterov and Muon, and of other optimizers that have one."""

    def _refusal(self, one: SteeredOptimizer) -> str | None:
        return _reason(optimizers.momentum_of, one)

    def _value(self, one: SteeredOptimizer) -> str:
        return f"{optimizers.momentum_of(one.optimizer):.6g}"

    def _set(self, one: SteeredOptimizer, text: str) -> None:
        optimizers.set_momentum(one.optimizer, self._number(one, text))

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        value = self._number(one, text)
        return all(group.get("momentum") == value for group in one.optimizer.param_groups)

    @staticmethod
    def _number(one: SteeredOptimizer, text: str) -> float:
        return new_value(text, optimizers.momentum_of(one.optimizer), knob="momentum")


class BetasKnob(_PerOptimizer):
    """β₁ and β₂ of Adam, AdamW and Muon, and of other optimizers that have two betas."""

    def _refusal(self, one: SteeredOptimizer) -> str | None:
        return _reason(optimizers.betas_of, one)

    def _value(self, one: SteeredOptimizer) -> str:
        return betas_text(optimizers.betas_of(one.optimizer))

    def _set(self, one: SteeredOptimizer, text: str) -> None:
        optimizers.set_betas(one.optimizer, pair(text))

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        return all(tuple(group.get("betas", ())) == pair(text) for group in one.optimizer.param_groups)


class WeightDecayKnob(_PerOptimizer):
    """The weight decay λ. The optimizer either adds it to the gradient or applies it to the weights directly."""

    def _refusal(self, one: SteeredOptimizer) -> str | None:
        return _reason(optimizers.weight_decay_of, one)

    def _value(self, one: SteeredOptimizer) -> str:
        return f"{optimizers.weight_decay_of(one.optimizer):.6g}"

    def _set(self, one: SteeredOptimizer, text: str) -> None:
        value = new_value(text, optimizers.weight_decay_of(one.optimizer), knob="weight_decay")
        optimizers.set_weight_decay(one.optimizer, value)

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        value = new_value(text, optimizers.weight_decay_of(one.optimizer), knob="weight_decay")
        groups = one.optimizer.param_groups
        return all(g["weight_decay"] == value for g in [g for g in groups if g["weight_decay"]] or groups)


class ClipKnob(_PerOptimizer):
    """The limit for the gradient norm of one optimizer. If the norm is larger, the optimizer's gradients are scaled
    down.
    """

    def _refusal(self, one: SteeredOptimizer) -> str | None:
        return None

    def _value(self, one: SteeredOptimizer) -> str:
        return "off" if one.clip is None else f"{one.clip:.6g}"

    def _set(self, one: SteeredOptimizer, text: str) -> None:
        if text == "off":
            one.clip = None
        elif one.clip is None and text[0] in "*/":
            raise ValueError(f"clip is off, so {text} has nothing to scale; allowed: a number > 0")
        else:
            one.clip = new_value(text, one.clip or 0.0, knob="clip")

    def _is_set(self, one: SteeredOptimizer, text: str) -> bool:
        if text == "off" or one.clip is None:
            return text == "off" and one.clip is None
        return new_value(text, one.clip, knob="clip") == one.clip


def _reason(read: Callable[[torch.optim.Optimizer], object], one: SteeredOptimizer) -> str | None:
    """Why the optimizer does not have an option: the error that reading it raises. None if it has the option."""
    try:
        read(one.optimizer)
    except ValueError as error:
        return str(error)
    return None
