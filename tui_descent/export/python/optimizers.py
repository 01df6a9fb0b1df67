"""Optimizers as source: their constructors, and how one takes over the averages that another has kept.

The averages are converted as `training/optim/state_transfer.py` converts them, with factors computed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tui_descent.scenario.optimizers import OPTIMIZERS

_CLASSES = {"rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}
_BETAS = (0.9, 0.999)
ADAMS = ("adam", "adamw", "muon")


@dataclass(slots=True, kw_only=True)
class Settings:
    """The settings of the optimizer at some point of the run, and what it has kept so far.

    `buffer` says whether there are momentum buffers, `updates` is the number of updates that Adam or RMSprop count.
    `hidden` says whether the averages are those of Muon's hidden matrices; all other parameters of Muon use AdamW.
    """

    name: str
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = _BETAS
    weight_decay: float = 0.0
    buffer: bool = False
    updates: dict[str, float] = field(default_factory=dict)  # by kind of parameter: "hidden" or "others"

    def rename(self) -> None:
        """Plain SGD is momentum with a momentum of 0."""
        if self.name in ("sgd", "momentum", "nesterov"):
            self.name = "sgd" if not self.momentum else "nesterov" if self.nesterov else "momentum"

    def count(self, updates: int) -> None:
        """Make so many updates."""
        if not updates:
            return
        if self.momentum or self.name == "muon":
            self.buffer = True
        for part in ("hidden", "others"):
            if _kind(self.name, part) in ("adam", "rmsprop"):
                self.updates[part] = self.updates.get(part, 0.0) + updates


def settings_of(name: str, momentum: float | None, betas: tuple[float, float], weight_decay: float) -> Settings:
    """The settings of the scenario's optimizer."""
    default = OPTIMIZERS[name].momentum or 0.0
    has_momentum = name in ("momentum", "nesterov", "muon")
    made = Settings(
        name=name,
        momentum=(default if momentum is None else momentum) if has_momentum else 0.0,
        nesterov=name == "nesterov",
        betas=betas if name in ADAMS else _BETAS,
        weight_decay=weight_decay,
    )
    made.rename()
    return made


def successor(old: Settings, name: str) -> Settings:
    """The settings of the optimizer `name` that replaces `old`, without its averages."""
    betas = old.betas if name in ADAMS and old.name in ADAMS else _BETAS
    momentum = 0.0
    if name in ("momentum", "nesterov", "muon"):
        family = ("muon",) if name == "muon" else ("momentum", "nesterov")
        momentum = old.momentum if old.name in family else OPTIMIZERS[name].momentum or 0.0
    return Settings(
        name=name,
        momentum=momentum,
        nesterov=name == "nesterov",
        betas=betas,
        weight_decay=old.weight_decay,
    )


def constructor(settings: Settings, rate: str, parameters: str) -> str:
    """An expression that creates the optimizer; for Muon two of them."""
    name, decay = settings.name, settings.weight_decay
    options = [f"lr={rate}"]
    betas = [] if settings.betas == _BETAS else [f"betas={settings.betas!r}"]
    if name == "muon":
        muon = [*options, f"momentum={settings.momentum!r}", f"weight_decay={decay!r}"]
        adamw = [*options, *betas, f"weight_decay={decay!r}"]
        lines = ["    torch.optim.Muon(", "        hidden,", *(f"        {option}," for option in muon)]
        lines += ['        adjust_lr_fn="match_rms_adamw",', "    ),"]
        return "\n".join(["[", *lines, f"    torch.optim.AdamW(others, {', '.join(adamw)}),", "]"])
    if name in ADAMS:
        options += betas
    if settings.momentum or settings.nesterov:
        options.append(f"momentum={settings.momentum!r}")
    if settings.nesterov:
        options.append("nesterov=True")
    if decay or name == "adamw":  # the default of AdamW is not 0
        options.append(f"weight_decay={decay!r}")
    return f"torch.optim.{_CLASSES.get(name, 'SGD')}({parameters}, {', '.join(options)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Averages:
    """Expressions for the mean gradient and the mean square in an optimizer's state, each times its weight."""

    mean: str = ""
    mean_weight: float = 1.0
    square: str = ""
    square_weight: float = 1.0
    updates: float = 0.0


def take_over(old: Settings, new: Settings, *, several: bool) -> list[tuple[str, list[str]]]:
    """How `new` takes over the averages of `old`; updates the counts of `new`.

    Returns for each kind of parameters, "hidden", "others" or "all", the lines that set the state of a parameter p from
    the state `kept`. With `several`, the script has a list of optimizers.
    """
    split = "muon" in (old.name, new.name)
    found = []
    for part in ("hidden", "others") if split else ("all",):
        averages = _read(old, part)
        owner = "optimizer" if not several else "optimizers[-1]" if part == "others" else "optimizers[0]"
        lines = _initial(new, part, averages, f"{owner}.state[p] =")
        if lines:
            found.append((part, lines))
    return found


def _kind(name: str, part: str) -> str:
    if name == "muon":
        return "average" if part == "hidden" else "adam"
    return "adam" if name in ("adam", "adamw") else "rmsprop" if name == "rmsprop" else "velocity"


def _read(s: Settings, part: str) -> _Averages:
    kind, updates = _kind(s.name, part), s.updates.get("others" if part == "all" else part, 0.0)
    if kind in ("velocity", "average"):
        if not s.buffer or (kind == "velocity" and not s.momentum):
            return _Averages()
        weight = 1 / (1 - s.momentum) if kind == "velocity" else 1.0
        return _Averages(mean='kept["momentum_buffer"]', mean_weight=weight, updates=_window(s.momentum))
    if not updates:
        return _Averages()
    if kind == "rmsprop":
        return _Averages(square='kept["square_avg"]', updates=updates)
    first, second = (1 - beta**updates for beta in s.betas)
    return _Averages(
        mean='kept["exp_avg"]', mean_weight=first, square='kept["exp_avg_sq"]', square_weight=second, updates=updates
    )


def _initial(new: Settings, part: str, a: _Averages, sets: str) -> list[str]:
    kind = _kind(new.name, part)
    if kind in ("velocity", "average"):
        if not a.mean or (kind == "velocity" and not new.momentum):
            return []
        new.buffer = True
        scale = 1 / (1 - new.momentum) / a.mean_weight if kind == "velocity" else 1 / a.mean_weight
        return [f'{sets} {{"momentum_buffer": {_scaled(a.mean, scale)}}}']
    if not a.mean and not a.square:
        return []
    new.updates |= dict.fromkeys(("hidden", "others") if part == "all" else (part,), a.updates)
    step = f'"step": torch.tensor({a.updates!r})'
    if kind == "rmsprop":
        lines, square = [], _scaled(a.square, 1 / a.square_weight)
        if not a.square:
            lines, square = [f"square = ({_scaled(a.mean, 1 / a.mean_weight)}).square()"], "square + square.mean()"
        return [*lines, f"{sets} {{", f"    {step},", f'    "square_avg": {square},', "}"]
    first, second = (1 - beta**a.updates for beta in new.betas)
    mean = _scaled(a.mean, first / a.mean_weight) if a.mean else "torch.zeros_like(p)"
    if a.square:
        square = _scaled(a.square, second / a.square_weight)
    else:
        square = f"({_scaled(a.mean, 1 / a.mean_weight)}).square() * {second!r}"
    return [f"{sets} {{", f"    {step},", f'    "exp_avg": {mean},', f'    "exp_avg_sq": {square},', "}"]


def _scaled(expression: str, factor: float) -> str:
    return f"{expression}.clone()" if factor == 1 else f"{expression} * {factor!r}"


def _window(momentum: float) -> float:
    return float(max(1, round(1 / (1 - momentum)))) if momentum < 1 else 1.0


def betas_factors(s: Settings, betas: tuple[float, float]) -> dict[str, float]:
    """The factors by which Adam's averages have to be multiplied for other betas; empty without averages."""
    updates = s.updates.get("others", 0.0)
    if not updates:
        return {}
    factors = {
        key: (1 - after**updates) / (1 - before**updates)
        for key, before, after in zip(("exp_avg", "exp_avg_sq"), s.betas, betas, strict=True)
    }
    return {key: factor for key, factor in factors.items() if factor != 1}
