"""How the optimizer moves: which one it is, its schedule, what can be set on it, and clipping before it."""

from __future__ import annotations

import math

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario import schedules as curves
from tui_descent.scenario.knobs import betas_text, new_value, pair, spec_of
from tui_descent.scenario.optimizers import known_rate, map_rate
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training import optimizers, schedules
from tui_descent.training.knobs.ground import Ground, Turned, own_loop

LOOP_OWNS_OPTIMIZER = (
    "your loop owns its optimizer, so its class cannot be changed from here; "
    "its learning rate, momentum, betas and weight decay can"
)


class OptimizerKnob:
    """Another class of optimizer; the rate is mapped and memory handed over as `optimizers.swap` says."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def value(self) -> str:
        """Its name in the table, or its class's."""
        return optimizers.name_of(self._ground.optimizer)

    def unavailable(self) -> str | None:
        """Why a user loop's class stays: the loop goes on calling the object that it made."""
        return None if self._ground.setup is not None else LOOP_OWNS_OPTIMIZER

    def turn(self, turn: TurnKnob) -> Turned:
        """The rate's mapping and what is remembered are the note."""
        ground, old = self._ground, self.value()
        if turn.value == old:
            return Turned(old=old, new=old, note="it is that one already")
        assert ground.setup is not None
        before, known = ground.rate.value, known_rate(ground.setup.scenario.optimizer, turn.value)
        swapped = optimizers.swap(ground.optimizer, turn.value, lr=known, model=ground.model)
        schedule = ground.setup.schedule
        moved = None if schedule is None else schedule.onto(swapped.optimizer)
        ground.change_optimizer(swapped.optimizer)
        ground.setup.schedule = moved
        if known is not None:
            ground.rate.multiplier = 1.0  # it was turned for the old one
        after = ground.rate.value
        rate = map_rate(old, turn.value, before, known=None if known is None else after).text
        if known is not None and not math.isclose(after, known):
            rate += f", {known:.3g}, where the schedule has it"
        return Turned(old=old, new=self.value(), note=f"lr {rate}; {swapped.carried}")


class ScheduleKnob:
    """A schedule over the steps that are left, from the base rate; the rate's knob stays a factor on it."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def value(self) -> str:
        """Its name."""
        setup = self._ground.setup
        return "constant" if setup is None or setup.schedule is None else setup.schedule.spec.name

    def unavailable(self) -> str | None:
        """An own loop has its own, and no known end."""
        return None if self._ground.setup is not None else own_loop("moves its rate itself and has no known end")

    def turn(self, turn: TurnKnob) -> Turned:
        """The curve to come is the note."""
        ground, old = self._ground, self.value()
        assert ground.setup is not None
        assert ground.steps is not None
        spec: ScheduleSpec = spec_of(turn)
        total = max(ground.steps, ground.step + 1)
        if wrong := curves.problems(spec, total - ground.step, whole="the steps left"):
            raise ValueError("; ".join(f"{field}: {text}" for field, text in wrong))
        ground.setup.schedule = schedules.make_schedule(
            spec, ground.optimizer, total_steps=total, from_step=ground.step
        )
        note = curves.about(spec, total - ground.step)
        return Turned(old=old, new=self.value(), note=note)


class _Setting:
    """Something that some optimizers have and others do not."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def value(self) -> str:
        """The number."""
        return self._read()

    def unavailable(self) -> str | None:
        """Where the optimizer has none; another one may."""
        try:
            self._read()
        except ValueError as error:
            return str(error)
        return None

    def turn(self, turn: TurnKnob) -> Turned:
        """In all groups."""
        old = self._read()
        self._write(turn.value)
        return Turned(old=old, new=self._read())

    def _read(self) -> str:
        raise NotImplementedError

    def _write(self, text: str) -> None:
        raise NotImplementedError


class MomentumKnob(_Setting):
    """SGD's, Nesterov's and Muon's μ; SGD with one is momentum."""

    def _read(self) -> str:
        return f"{optimizers.momentum_of(self._ground.optimizer):.6g}"

    def _write(self, text: str) -> None:
        optimizer = self._ground.optimizer
        optimizers.set_momentum(optimizer, new_value(text, optimizers.momentum_of(optimizer), knob="momentum"))


class BetasKnob(_Setting):
    """Adam's, AdamW's and Muon's β₁ and β₂."""

    def _read(self) -> str:
        return betas_text(optimizers.betas_of(self._ground.optimizer))

    def _write(self, text: str) -> None:
        optimizers.set_betas(self._ground.optimizer, pair(text))


class WeightDecayKnob(_Setting):
    """λ, through the gradient or by itself as the optimizer has it."""

    def _read(self) -> str:
        return f"{optimizers.weight_decay_of(self._ground.optimizer):.6g}"

    def _write(self, text: str) -> None:
        optimizer = self._ground.optimizer
        value = new_value(text, optimizers.weight_decay_of(optimizer), knob="weight_decay")
        optimizers.set_weight_decay(optimizer, value)


class ClipKnob:
    """The gradient's largest global norm."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def value(self) -> str:
        """A number, or `off`."""
        return "off" if self._ground.clip is None else f"{self._ground.clip:.6g}"

    def unavailable(self) -> str | None:
        """Gradients stand before any optimizer's step."""
        return None

    def turn(self, turn: TurnKnob) -> Turned:
        """From the next step on."""
        ground, old = self._ground, self.value()
        if turn.value == "off":
            ground.clip = None
        elif ground.clip is None and turn.value[0] in "*/":
            raise ValueError(f"clip is off; {turn.value} is relative to nothing; allowed: a number > 0")
        else:
            ground.clip = new_value(turn.value, ground.clip or 0.0, knob="clip")
        return Turned(old=old, new=self.value())
