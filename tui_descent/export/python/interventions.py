"""The interventions of a run as source: for each of their steps the lines that repeat them in the loop.

Numbers are computed here where they do not depend on losses, with the operations of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tui_descent.export.errors import ExportError
from tui_descent.export.python import optimizers, schedules
from tui_descent.export.python.optimizers import Settings
from tui_descent.export.python.text import plain
from tui_descent.protocol.events import KnobTurned
from tui_descent.protocol.layer_names import in_words
from tui_descent.scenario import knobs
from tui_descent.scenario.knob_table import NEUTRAL_KNOBS
from tui_descent.scenario.optimizers import known_rate, map_rate
from tui_descent.scenario.schedules import resolve_schedule, resolved_factor
from tui_descent.scenario.spec import Scenario, ScheduleSpec

WRITTEN = ("lr", "optimizer", "schedule", "momentum", "betas", "weight_decay", "clip", "batch_size")
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Phase:
    """A schedule and the steps between which it was planned to act."""

    spec: ScheduleSpec
    begin: int
    end: int

    def factor(self, step: int) -> float | None:
        """The factor on the base rate; None if it depends on losses."""
        if self.spec.name == "plateau":
            return None
        return resolved_factor(resolve_schedule(self.spec, self.end - self.begin), step - self.begin)


def refuse(interventions: Sequence[KnobTurned]) -> None:
    """Raises `ExportError` if an intervention has changed the net."""
    others = [turn for turn in interventions if turn.knob not in (*WRITTEN, *NEUTRAL_KNOBS)]
    if not others:
        return
    listed = [f"step {turn.step:,}: {_words(turn)}" for turn in others[:MOST_NAMED]]
    if more := len(others) - MOST_NAMED:
        listed += [f"and {more} more"] if more > 0 else []
    raise ExportError(
        f"a PyTorch script cannot repeat changes of the net ({'; '.join(listed)}); a scenario can: use --to scenario"
    )


def _words(turn: KnobTurned) -> str:
    target = "" if turn.target == "all" else f" of {in_words(turn.target)}"
    old, new = (knobs.shown_value(turn.knob, value) for value in (turn.old, turn.new))
    return f"{turn.knob}{target} {old} → {new}"


@dataclass(slots=True)
class Plan:
    """The loop's optimizer and rate over the run, and the lines that each intervention needs.

    `several` says that there are two optimizers, because Muon is used at some point. If there is a schedule at some
    point, `scheduled`, the loop sets the rate at each step; otherwise only interventions change it.
    """

    scenario: Scenario
    interventions: Sequence[KnobTurned]
    parameters: str
    lines: dict[int, list[str]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    several: bool = False
    scheduled: bool = False
    base_changes: bool = False
    scales: bool = False
    clips: bool = False
    resizes: bool = False
    first: Settings = field(init=False)

    def __post_init__(self) -> None:
        spec, turns = self.scenario.optimizer, self.interventions
        refuse(turns)
        names = {spec.name, *(turn.new for turn in turns if turn.knob == "optimizer")}
        self.several = "muon" in names
        turned = {turn.knob for turn in turns}
        chosen = [turn for turn in turns if turn.knob == "schedule"]
        self.scheduled = any(name != "constant" for name in (self.scenario.schedule.name, *(c.new for c in chosen)))
        self.base_changes = self.scheduled and "optimizer" in turned
        self.scales = self.scheduled and bool(turned & {"lr", "optimizer"})
        self.clips = spec.clip is not None or "clip" in turned
        self.resizes = "batch_size" in turned
        self.first = optimizers.settings_of(spec.name, spec.momentum, spec.betas, spec.weight_decay)
        if self.scheduled:
            self.phases.append(Phase(self.scenario.schedule, 0, self.scenario.run.steps))
        _Writer(self).write()

    @property
    def acting(self) -> list[Phase]:
        """The schedules that act: of several that begin at the same step, the last one."""
        last = {phase.begin: phase for phase in self.phases}
        return list(last.values())

    @property
    def plateaus(self) -> list[tuple[int, Phase]]:
        """The acting schedules that depend on the loss, with their numbers."""
        return [(n, phase) for n, phase in enumerate(self.acting) if phase.spec.name == "plateau"]

    def rate(self, phase: Phase) -> str:
        """An expression for the rate at `step`, without the factor of interventions."""
        if phase.spec.name == "plateau":
            return "plateau.rate"
        base = "base_lr" if self.base_changes else "LR"
        if phase.spec.name == "constant":
            return base
        return f"{base} * {schedules.function_name(phase.spec, phase.begin)}(step)"


class _Writer:
    """Goes through the interventions in their order and keeps the state that the run had."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._now = replace(plan.first, updates={})
        self._base = float(plan.scenario.optimizer.lr)
        self._scale: float | None = 1.0  # the multiplier of the rate; None if it depends on losses
        self._clip = plan.scenario.optimizer.clip
        data = plan.scenario.data
        self._size = 0 if data is None else data.batch_size
        self._step = 0  # before this update the last intervention was made

    def write(self) -> None:
        turns: dict[str, Callable[[KnobTurned], list[str]]] = {
            "lr": self._turn_lr,
            "optimizer": self._turn_optimizer,
            "schedule": self._turn_schedule,
            "momentum": self._turn_momentum,
            "betas": self._turn_betas,
            "weight_decay": self._turn_weight_decay,
            "clip": self._turn_clip,
            "batch_size": self._turn_batch_size,
        }
        for turn in self._plan.interventions:
            if turn.knob in NEUTRAL_KNOBS:
                continue
            self._now.count(turn.step - self._step)
            self._step = turn.step
            made = turns[turn.knob](turn)
            self._plan.lines.setdefault(turn.step, []).extend([f"# {plain(_words(turn))}", *made])

    def _options(self, key: str, value: str, *, only: str = "") -> list[str]:
        """Lines that set an option of all optimizers, or of those that have it."""
        if not self._plan.several:
            return [f'optimizer.param_groups[0]["{key}"] = {value}']
        has = f' if "{key}" in one.param_groups[0]' if only else ""
        return [
            f"for one in {f'[one for one in optimizers{has}]' if has else 'optimizers'}:",
            f'    one.param_groups[0]["{key}"] = {value}',
        ]

    def _factor(self) -> float | None:
        """The schedule's factor at this step; None if it depends on losses."""
        return self._plan.phases[-1].factor(self._step) if self._plan.phases else 1.0

    def _turn_lr(self, turn: KnobTurned) -> list[str]:
        text, factor = turn.value or turn.new, self._factor()
        if factor is not None and self._scale is not None:
            own = self._base * factor
            self._scale = knobs.new_value(text, own * self._scale) / own
            if self._plan.scheduled:
                return [f"scale = {self._scale!r}"]
            return self._options("lr", repr(own * self._scale if self._scale != 1.0 else own))
        self._scale = None
        own_text = self._plan.rate(self._plan.phases[-1])
        value = f"rate * scale {text[0]} {float(text[1:])!r}" if text[0] in "*/" else repr(float(text))
        return [f"rate = {own_text}", f"scale = {value} / rate"]

    def _turn_optimizer(self, turn: KnobTurned) -> list[str]:
        plan, old = self._plan, self._now
        known = known_rate(plan.scenario.optimizer, turn.new)
        rate = map_rate(old.name, turn.new, self._base, known=None).lr if known is None else known
        lines = []
        self._base = rate * (self._base / self._base)
        new = self._now = optimizers.successor(old, turn.new)
        moved = optimizers.take_over(old, new, several=plan.several)
        new.rename()
        if known is not None:
            self._scale = 1.0
        if plan.scheduled:
            lines.append(f"base_lr = {self._base!r}")
            lines += ["scale = 1.0"] if known is not None and plan.scales else []
            lines += ["plateau.change_base(base_lr)"] if plan.phases[-1].spec.name == "plateau" else []
        lr = self._base if plan.scheduled or self._scale in (None, 1.0) else self._base * (self._scale or 1.0)
        if moved:
            everything = "{p: state for one in optimizers for p, state in one.state.items()}"
            lines.append(f"averages = {everything if plan.several else 'optimizer.state'}")
        lines += self._created(new, lr)
        for part, made in moved:
            parameters = plan.parameters if part == "all" else part
            lines += [f"for p in {parameters}:  # takes over the averages of {old.name}", "    kept = averages[p]"]
            lines += [f"    {line}" for line in made]
        return lines

    def _created(self, settings: Settings, lr: float) -> list[str]:
        made = optimizers.constructor(settings, repr(lr), self._plan.parameters)
        if not self._plan.several:
            return [f"optimizer = {made}"]
        return f"optimizers = {made if settings.name == 'muon' else f'[{made}]'}".splitlines()

    def _turn_schedule(self, turn: KnobTurned) -> list[str]:
        spec = knobs.spec_of(turn.again)
        if not self._plan.scheduled:
            return []  # constant again
        end = max(self._plan.scenario.run.steps, turn.step + 1)
        self._plan.phases.append(Phase(spec, turn.step, end))
        if spec.name != "plateau":
            return []
        base = "base_lr" if self._plan.base_changes else "LR"
        return [f"plateau = {schedules.plateau(spec, turn.step, end, base)}"]

    def _turn_weight_decay(self, turn: KnobTurned) -> list[str]:
        value = knobs.new_value(turn.value or turn.new, self._now.weight_decay, knob="weight_decay")
        self._now.weight_decay = value
        return self._options("weight_decay", repr(value))

    def _turn_momentum(self, turn: KnobTurned) -> list[str]:
        now = self._now
        now.momentum = knobs.new_value(turn.value or turn.new, now.momentum, knob="momentum")
        lines = self._options("momentum", repr(now.momentum), only="momentum")
        if now.momentum == 0 and now.name != "muon":
            now.buffer = False
            owner = "optimizers[0]" if self._plan.several else "optimizer"
            lines.append(f"{owner}.state.clear()  # a later momentum starts at 0")
        now.rename()
        return lines

    def _turn_betas(self, turn: KnobTurned) -> list[str]:
        betas = knobs.pair(turn.value or turn.new)
        factors = optimizers.betas_factors(self._now, betas)
        self._now.betas = betas
        lines = self._options("betas", repr(betas), only="betas")
        if factors:
            owner = "optimizers[-1]" if self._plan.several else "optimizer"
            lines.append(f"for state in {owner}.state.values():  # the averages without their bias stay the same")
            lines += [f'    state["{key}"].mul_({factor!r})' for key, factor in factors.items()]
        return lines

    def _turn_clip(self, turn: KnobTurned) -> list[str]:
        text = turn.value or turn.new
        self._clip = None if text == "off" else knobs.new_value(text, self._clip or 0.0, knob="clip")
        return [f"limit = {self._clip!r}"]

    def _turn_batch_size(self, turn: KnobTurned) -> list[str]:
        self._size = int(knobs.new_value(turn.value or turn.new, self._size, knob="batch_size"))
        return [f"batches.size = {self._size}"]
