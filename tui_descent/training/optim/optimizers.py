"""Optimizers: create them from a spec, find their names, read and set their options, replace them during a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.scenario.optimizers import OPTIMIZERS, RateMapping, map_rate, refusal, traits
from tui_descent.scenario.spec import OptimizerSpec
from tui_descent.training.optim import state_transfer
from tui_descent.training.optim.muon import Muon, hidden_matrices
from tui_descent.training.optim.schedules import base_rates

_BETAS = (0.9, 0.999)
_FLAGS = ("maximize", "foreach", "fused", "capturable", "differentiable")
# RMSprop divides by √v without bias correction, and its first v is (1 − α)·g², a hundredth of g².
_WITHOUT_STATE = {"rmsprop": ": the first steps are up to ten times the learning rate"}
_ADAMS = ("adam", "adamw", "muon")
# Device types on which fused optimizers are created. Only torch's fused optimizers can skip a non-finite update on the
# device itself, without synchronising.
FUSED_ON = {"cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSwap:
    """A new optimizer that replaces another one.

    `rate` is how the learning rate was converted. `transferred` says, for the user, which state was transferred.
    """

    optimizer: torch.optim.Optimizer
    old_name: str
    new_name: str
    rate: RateMapping
    transferred: str


def make_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Create the optimizer of `spec` for all parameters of the model.

    Raises `ValueError` for Muon if the model has no hidden matrix.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    options: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.name in _ADAMS:
        options["betas"] = spec.betas
    if spec.name in ("momentum", "nesterov", "muon"):
        default = OPTIMIZERS[spec.name].momentum
        options["momentum"] = default if spec.momentum is None else spec.momentum
    return _create(spec.name, groups, options, model)


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """The optimizer's name in the table of optimizers, or its class name in lower case if it is not in the table."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    if isinstance(optimizer, Muon | torch.optim.Muon):
        return "muon"
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
        return "adamw" if decoupled else "adam"
    if isinstance(optimizer, torch.optim.RMSprop):
        return "rmsprop"
    if isinstance(optimizer, torch.optim.SGD):
        if not group.get("momentum"):
            return "sgd"
        return "nesterov" if group.get("nesterov") else "momentum"
    return type(optimizer).__name__.lower()


def momentum_of(optimizer: torch.optim.Optimizer) -> float:
    """The first group's momentum. Raises `ValueError` with the reason if the optimizer has none."""
    _require_option(optimizer, "momentum")
    return float(optimizer.param_groups[0]["momentum"])


def set_momentum(optimizer: torch.optim.Optimizer, value: float) -> float:
    """Set momentum in all groups and return it. Momentum buffers are kept, except if SGD's momentum becomes 0.

    With a momentum > 0, plain `sgd` becomes the optimizer called `momentum`; with 0 it becomes `sgd` again. Raises
    `ValueError`, with nothing changed, for a number outside [0, 1).
    """
    _require_option(optimizer, "momentum")
    _check_unit_interval("momentum", value)
    for group in optimizer.param_groups:
        group["momentum"] = value
        if value == 0 and isinstance(optimizer, torch.optim.SGD):
            for parameter in group["params"]:  # torch would reuse the stale buffers once momentum is raised
                if parameter in optimizer.state:
                    optimizer.state[parameter].pop("momentum_buffer", None)
    return momentum_of(optimizer)


def betas_of(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """The first group's betas. Raises `ValueError` with the reason if the optimizer has none."""
    _require_option(optimizer, "betas")
    betas = optimizer.param_groups[0]["betas"]
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        count = f"{len(betas)} betas" if isinstance(betas, list | tuple) else "betas of another kind"
        raise ValueError(f"{name_of(optimizer)} has {count}; only a pair can be set")
    return float(betas[0]), float(betas[1])


def set_betas(optimizer: torch.optim.Optimizer, values: tuple[float, float]) -> tuple[float, float]:
    """Set the betas in all groups and return them. Adam's averages are rescaled to keep their bias-corrected values the
    same.

    Raises `ValueError`, with nothing changed, for numbers outside [0, 1).
    """
    _require_option(optimizer, "betas")
    for value in values:
        _check_unit_interval("betas", value)
    first, second = values
    for group in optimizer.param_groups:
        old = float(group["betas"][0]), float(group["betas"][1])
        # Other optimizers may use their averages without bias correction; then nothing has to be rescaled.
        for parameter in group["params"] if name_of(optimizer) in _ADAMS else ():
            if "exp_avg" in (state := optimizer.state.get(parameter, {})):
                state_transfer.rescale_for_betas(state, old, (first, second))
        group["betas"] = (first, second)
    return betas_of(optimizer)


def weight_decay_of(optimizer: torch.optim.Optimizer) -> float:
    """The weight decay of the first group in which it is not 0; 0 if all are 0.

    Raises `ValueError` if the optimizer has no such option.
    """
    _require_weight_decay(optimizer)
    return next((float(g["weight_decay"]) for g in optimizer.param_groups if g["weight_decay"]), 0.0)


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> float:
    """Set weight decay in the groups that have it, or in all groups if none has, and return it.

    Groups without weight decay, such as a group of biases, therefore stay without it. Raises `ValueError`, with nothing
    changed, for a number outside [0, 10].
    """
    _require_weight_decay(optimizer)
    if not (math.isfinite(value) and 0 <= value <= 10):
        raise ValueError(f"weight_decay = {value:g}; allowed: a number ≥ 0 and ≤ 10")
    groups = optimizer.param_groups
    for group in [g for g in groups if g["weight_decay"]] or groups:
        group["weight_decay"] = value
    return weight_decay_of(optimizer)


def swap(
    old: torch.optim.Optimizer,
    name: str,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    weight_decay: float | None = None,
    model: nn.Module | None = None,
) -> OptimizerSwap:
    r"""Create another optimizer for the same parameters, in the same groups and order. `old` is not changed.

    `lr` is the new base rate of the first group; by default `map_rate` converts the old one. Other groups keep their
    ratio to it, and the schedule's current factor is kept. Betas, momentum and weight decay keep their values if both
    optimizers have them. Their meaning may change: SGD, RMSprop and Adam add weight decay to the gradient, AdamW and
    Muon apply it to the weights. Flags such as `foreach` are kept if the new optimizer has them. If no flag is set, the
    new optimizer is fused on a GPU. Muon needs `model` to know which matrices are hidden.

    State is transferred as follows. ḡ is the mean gradient, v the mean squared gradient, t the number of updates:

    | from \\ to | momentum, nesterov: ḡ/(1−μ) | Adam, AdamW: (1−β₁ᵗ)ḡ, (1−β₂ᵗ)v | RMSprop: v | Muon's matrices: ḡ |
    |---|---|---|---|---|
    | SGD | empty | empty | empty | empty |
    | momentum, nesterov | ḡ | ḡ, v = ḡ², t = 1/(1−μ) | v = ḡ² + its mean | ḡ |
    | Adam, AdamW | ḡ | ḡ, v, t (also max v, of amsgrad) | v, t | ḡ |
    | RMSprop | empty | v, t; ḡ = 0 | v, t | empty |
    | Muon's matrices | ḡ | ḡ, v = ḡ², t = 1/(1−μ) | v = ḡ² + its mean | ḡ |

    v = ḡ² is what t equal gradients would give. With v = 0, Adam's first steps would be ten times too long. RMSprop has
    no bias correction, so its v is not rescaled. "Its mean" is the mean of ḡ² over the tensor. Parameters that Muon
    updates by AdamW count as AdamW's. No state is transferred from or to an optimizer that is not in the table.

    Raises `ValueError` for an unknown `name`, for values out of range, and if no rate is known or all rates are 0.
    """
    old_name, bases = name_of(old), base_rates(old)
    _check_requested(old, name, momentum=momentum, betas=betas)
    old_rate, rate = _new_rate(old_name, name, bases, lr)
    requested = {key: value for key, value in (("momentum", momentum), ("betas", betas)) if value is not None}
    groups = []
    for group, base in zip(old.param_groups, bases, strict=True):
        options: dict[str, Any] = {"params": list(group["params"]), "lr": rate.lr * (base / old_rate)}
        options |= _options(name, old_name, group) | requested
        _check_options(options)
        groups.append(options)
    flags = {k: v for k in _FLAGS if (v := old.param_groups[0].get(k)) or (v is False and k == "fused")}
    new = _create(name, groups, {"lr": rate.lr} | flags, model)
    for group, new_group, base in zip(old.param_groups, new.param_groups, bases, strict=True):
        # Keys that the user has added to the group, such as parameter names.
        new_group.update({k: v for k, v in group.items() if k not in old.defaults and k not in new_group})
        if "initial_lr" in group:
            new_group["initial_lr"] = new_group["lr"]
            new_group["lr"] = new_group["initial_lr"] * (float(group["lr"]) / base if base else 1.0)
    if weight_decay is not None:
        set_weight_decay(new, weight_decay)
    entries = _transfer_state(old, new)
    transferred = (
        f"keeps {', '.join(entries)}" if entries else f"no optimizer state transferred{_WITHOUT_STATE.get(name, '')}"
    )
    return OptimizerSwap(optimizer=new, old_name=old_name, new_name=name, rate=rate, transferred=transferred)


def _new_rate(old_name: str, name: str, bases: list[float], lr: float | None) -> tuple[float, RateMapping]:
    """The first base rate that is not 0, and its new rate: `lr` if given, otherwise the converted rate."""
    old_rate = next((base for base in bases if base), None)
    if old_rate is None:
        raise ValueError("the learning rate is 0 in every group, so there is no rate to convert")
    if lr is None:
        return old_rate, map_rate(old_name, name, old_rate)
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr = {lr:g}; allowed: a number > 0")
    return old_rate, RateMapping(lr, f"{old_rate:.3g} → {lr:.3g}, as requested")


def _check_requested(
    old: torch.optim.Optimizer, name: str, *, momentum: float | None, betas: tuple[float, float] | None
) -> None:
    row = traits(name)
    if momentum is not None and (not row.momentum or momentum == 0):
        reason = refusal(name, "momentum") or (
            "sgd has no momentum" if name == "sgd" else f"{name} needs a momentum > 0"
        )
        raise ValueError(f"momentum = {momentum:g}; {reason}")
    if betas is not None and (no_betas := refusal(name, "betas")) is not None:
        raise ValueError(no_betas)
    if name == "muon" and any(group.get("maximize") for group in old.param_groups):
        raise ValueError("muon has no maximize option, which this optimizer uses")


def _create(
    name: str, groups: Iterable[dict[str, Any]], options: dict[str, Any], model: nn.Module | None
) -> torch.optim.Optimizer:
    if name == "muon":
        if model is None:
            raise ValueError("muon needs the model, to know which matrices are hidden")
        own_options = {k: v for k, v in options.items() if k not in _FLAGS}
        return Muon(groups, hidden=hidden_matrices(model), **own_options)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    kind: Any = kinds.get(name, torch.optim.SGD)
    # Only RMSprop takes no `fused` and only SGD takes no `capturable`.
    unsupported = {"rmsprop": "fused"}.get(name, "" if name in kinds else "capturable")
    defaults = {"nesterov": True, "momentum": OPTIMIZERS[name].momentum} if name == "nesterov" else {}
    groups = list(groups)
    defaults |= {"fused": True} if _can_be_fused(groups, options) else {}
    supported = {k: v for k, v in (defaults | options).items() if k != unsupported}
    optimizer: torch.optim.Optimizer = kind(groups, **supported)
    return optimizer


def _can_be_fused(groups: list[dict[str, Any]], options: dict[str, Any]) -> bool:
    if options.get("foreach") or options.get("differentiable"):
        return False  # torch does not allow them together with `fused`
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in FUSED_ON and p.is_floating_point() for p in parameters)


def _options(name: str, old_name: str, group: dict[str, Any]) -> dict[str, Any]:
    """The options of a new group: those of the old group if both optimizers have them, otherwise the defaults."""
    options: dict[str, Any] = {"weight_decay": float(group.get("weight_decay", 0.0))}
    same_adam = name in _ADAMS and old_name in _ADAMS and "betas" in group
    if name in _ADAMS:
        options["betas"] = tuple(group["betas"]) if same_adam else _BETAS
    if same_adam:
        options["eps"] = group["eps"]
        if name != "muon":
            options["amsgrad"] = group.get("amsgrad", False)
    if name in ("momentum", "nesterov", "muon"):
        family = ("muon",) if name == "muon" else ("momentum", "nesterov")
        options["momentum"] = float(group["momentum"]) if old_name in family else OPTIMIZERS[name].momentum
    if name == old_name == "rmsprop":
        options |= {"alpha": group["alpha"], "eps": group["eps"]}
    return options


def _transfer_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> list[str]:
    transferred: dict[str, None] = {}  # the names of state entries, in order
    for before, after in zip(old.param_groups, new.param_groups, strict=True):
        for parameter in after["params"]:
            if parameter not in old.state:
                continue
            averages = state_transfer.read_averages(_kind(old, parameter), before, old.state[parameter])
            state = state_transfer.initial_state(_kind(new, parameter), after, averages, parameter)
            if state:
                new.state[parameter] = state
                transferred |= dict.fromkeys(state)
    return list(transferred)


def _kind(optimizer: torch.optim.Optimizer, parameter: Tensor) -> state_transfer.StateKind:
    if isinstance(optimizer, Muon):
        return "average" if optimizer.is_hidden(parameter) else "adam"
    kinds: dict[str, state_transfer.StateKind] = {
        "muon": "average",
        "adam": "adam",
        "adamw": "adam",
        "rmsprop": "rmsprop",
    }
    return kinds.get(name_of(optimizer), "velocity" if isinstance(optimizer, torch.optim.SGD) else "none")


def _require_option(optimizer: torch.optim.Optimizer, option: str) -> None:
    """Raises `ValueError` unless every parameter group has the option. The optimizer need not be in the table."""
    name = name_of(optimizer)
    if name in OPTIMIZERS and (reason := refusal(name, option)):
        raise ValueError(reason)
    if any(group.get(option) is None for group in optimizer.param_groups):  # torch's own Muon has no AdamW part
        raise ValueError(f"this {name} has no {option}" if name in OPTIMIZERS else f"{name} has no {option}")


def _require_weight_decay(optimizer: torch.optim.Optimizer) -> None:
    if any(group.get("weight_decay") is None for group in optimizer.param_groups):
        raise ValueError(f"{name_of(optimizer)} has no weight_decay")


def _check_options(group: dict[str, Any]) -> None:
    if "momentum" in group:
        _check_unit_interval("momentum", group["momentum"])
    for value in group.get("betas", ()):
        _check_unit_interval("betas", value)
    if not (math.isfinite(group["weight_decay"]) and group["weight_decay"] >= 0):
        raise ValueError(f"weight_decay = {group['weight_decay']:g}; allowed: a number ≥ 0")


def _check_unit_interval(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{option} = {value:g}; allowed: a number ≥ 0 and < 1")
