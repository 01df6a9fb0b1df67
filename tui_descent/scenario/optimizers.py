"""Names and settings of the optimizers, and how a learning rate is converted from one to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from tui_descent.scenario.spec import Optimizer, OptimizerSpec, RatesSpec
from tui_descent.scenario.validate import nearest

# Up to this many parameter groups, all rates are shown.
MOST_RATES = 3
# The end of the reason why an optimizer's rate cannot be changed.
OWN_RATE = "it sets its own rate"
NAMES: tuple[str, ...] = get_args(Optimizer)

# A Muon optimizer uses AdamW for some parameters. Muon's own updates are scaled, so the same learning rate suits both
# parts.
MUON_ADAMW_RATIO = 1.0


class OptimizerTraits(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of one optimizer.

    `rate` is the typical ratio of this optimizer's good learning rates to Adam's. `momentum` is the default, None if
    the optimizer has no momentum. `decoupled_decay`: weight decay acts on the weights directly, not through the
    gradient.
    """

    title: str
    rate: float
    momentum: float | None = None
    betas: bool = False
    decoupled_decay: bool = False


# Measured on the digits: the ratio of good rates, SGD : momentum : Adam, lies between 15 : 4 : 1 and 100 : 25 : 1. The
# constants below are the geometric means, √(15·100) and √(4·25). Muon, scaled to AdamW's update, reached its lowest
# loss at AdamW's best rate on four of four MLPs. Their depth × width was 4×32, 4×64, 8×32 and 2×128, with four rates
# per decade and the median of three seeds.
_SGD, _MOMENTUM = 1500**0.5, 10.0
OPTIMIZERS: dict[str, OptimizerTraits] = {
    "sgd": OptimizerTraits(title="SGD", rate=_SGD, momentum=0.0),
    "momentum": OptimizerTraits(title="momentum", rate=_MOMENTUM, momentum=0.9),
    "nesterov": OptimizerTraits(title="Nesterov", rate=_MOMENTUM, momentum=0.9),
    "rmsprop": OptimizerTraits(title="RMSprop", rate=1.0),
    "adam": OptimizerTraits(title="Adam", rate=1.0, betas=True),
    "adamw": OptimizerTraits(title="AdamW", rate=1.0, betas=True, decoupled_decay=True),
    "muon": OptimizerTraits(title="Muon", rate=1.0, momentum=0.95, betas=True, decoupled_decay=True),
}


class RateMapping(msgspec.Struct, frozen=True):
    """The learning rate after a change of optimizer, and a description of the change."""

    lr: float
    text: str


def map_rate(old: str, new: str, lr: float, *, known: float | None = None) -> RateMapping:
    """The rate with which `new` makes steps about as large as `old` does with `lr`.

    The result is `lr` times a constant factor, so the shape of a schedule does not change. It is a starting point,
    right to about half a decade. If the scenario gives a rate for `new`, that rate, `known`, is returned instead.
    Raises `ValueError` for an unknown name.
    """
    before, after = traits(old), traits(new)
    mapped = lr * (after.rate / before.rate)
    if old == new:
        return RateMapping(lr, f"{lr:.3g} kept")
    if known is None and before.rate == after.rate:
        return RateMapping(lr, f"{lr:.3g} kept: {before.title} and {after.title} use similar rates")
    if known is not None:
        change = f"{lr:.3g} kept" if lr == known else f"{lr:.3g} → {known:.3g}"
        return RateMapping(known, f"{change} (the scenario's rate for {after.title})")
    smaller = after.rate < before.rate
    factor = before.rate / after.rate if smaller else after.rate / before.rate
    sign, size = ("÷", "larger") if smaller else ("×", "smaller")
    text = f"{lr:.2g} → {mapped:.2g} ({sign}{factor:.2g}: {possessive(new)} steps are {size})"
    return RateMapping(mapped, text)


def known_rate(spec: OptimizerSpec, name: str) -> float | None:
    """The scenario's rate for the optimizer `name`, or None.

    If the scenario gives any `rates`, its `lr` is the rate for the optimizer it starts with.
    """
    named: float | None = getattr(spec.rates, name, None)
    lr_counts = name == spec.name and spec.rates != RatesSpec()
    return spec.lr if named is None and lr_counts else named


def traits(name: str) -> OptimizerTraits:
    """An optimizer's properties. Raises `ValueError`, which lists the known names."""
    if name not in OPTIMIZERS:
        hint = nearest(name, OPTIMIZERS)
        raise ValueError(f'no rate is known for the optimizer "{name[:40]}"; known: {", ".join(OPTIMIZERS)}{hint}')
    return OPTIMIZERS[name]


def possessive(name: str) -> str:
    """`adam` → `Adam's`."""
    return f"{traits(name).title}'s"


def refusal(name: str, wanted: str) -> str | None:
    """Why `wanted`, momentum or betas, cannot be set on the optimizer; None if it can be set."""
    row = OPTIMIZERS.get(name)
    has_momentum = row is not None and row.momentum is not None
    has_betas = row is not None and row.betas
    if has_momentum if wanted == "momentum" else has_betas:
        return None
    if wanted == "momentum" and has_betas:
        return f"{name} has betas instead of momentum; try betas=…"
    if wanted == "betas" and has_momentum:
        return f"{name} has momentum instead of betas; try momentum=…"
    instead = "optimizer=momentum" if wanted == "momentum" else "optimizer=adam"
    return f"{name} has no {wanted} to set; try {instead}"


def rates_text(rates: Sequence[float]) -> str:
    """The rates of an optimizer's parameter groups: a single rate if all are equal, all rates if there are few groups,
    otherwise the first rate and the range.
    """
    if not rates:
        return "its own"
    if len(set(rates)) == 1:
        return f"{rates[0]:.3g}"
    if len(rates) <= MOST_RATES:
        return " / ".join(f"{rate:.3g}" for rate in rates)
    return f"{rates[0]:.3g} ({min(rates):.3g} to {max(rates):.3g})"


def all_rates_text(rates: Mapping[str, Sequence[float]]) -> str:
    """The rates of all optimizers of a run by name, as in `g 0.002, d 0.001`, or of one: `2 groups 0.3 / 0.1`."""
    if len(rates) == 1:
        (groups,) = rates.values()
        return f"{len(groups)} groups {rates_text(groups)}" if len(set(groups)) > 1 else rates_text(groups)
    return ", ".join(f"{name} {rates_text(groups)}" for name, groups in rates.items())
