"""Optimizer state transfer: converts one parameter's state in one optimizer into its state in another.

ḡ is the mean gradient, v the mean squared gradient, t the number of updates made, μ the momentum, β₁ and β₂ the betas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# The averages of a parameter's gradients that an optimizer keeps. `velocity` is SGD's momentum buffer, ḡ/(1−μ);
# `average` is Muon's momentum buffer, ḡ; `adam` keeps ḡ and v; `rmsprop` keeps v.
StateKind = Literal["velocity", "average", "adam", "rmsprop", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAverages:
    """Averages of one parameter's past gradients: `mean` = `mean_weight`·ḡ and `square` = `square_weight`·v.

    The tensors have the shape of the parameter. `max_square` is amsgrad's maximum of `square`. `steps` is t, or the
    averaging window 1/(1−μ) for an optimizer that does not count steps.
    """

    mean: Tensor | None = None
    mean_weight: float = 1.0
    square: Tensor | None = None
    square_weight: float = 1.0
    max_square: Tensor | None = None
    steps: float = 0.0


def read_averages(kind: StateKind, group: dict[str, Any], state: dict[str, Any]) -> GradientAverages:
    """Read a parameter's averages from its optimizer state. Their weights are computed from the options in `group`."""
    if kind == "velocity":
        momentum = float(group["momentum"])
        if momentum == 0 or state.get("momentum_buffer") is None:
            return GradientAverages()
        weight = (1 - float(group["dampening"])) / (1 - momentum)
        return GradientAverages(mean=state["momentum_buffer"], mean_weight=weight, steps=_window(momentum))
    if kind == "average" and state.get("momentum_buffer") is not None:
        return GradientAverages(mean=state["momentum_buffer"], steps=_window(float(group["momentum"])))
    if kind == "adam" and (steps := float(state.get("step", 0))) > 0:
        first, second = (1 - float(b) ** steps for b in group["betas"])
        return GradientAverages(
            mean=state["exp_avg"],
            mean_weight=first,
            square=state["exp_avg_sq"],
            square_weight=second,
            max_square=state.get("max_exp_avg_sq"),
            steps=steps,
        )
    if kind == "rmsprop" and (steps := float(state.get("step", 0))) > 0:
        return GradientAverages(square=state["square_avg"], steps=steps)
    return GradientAverages()


def initial_state(
    kind: StateKind, group: dict[str, Any], averages: GradientAverages, parameter: Tensor
) -> dict[str, Any]:
    """The state with which an optimizer of this `kind` starts; empty if nothing can be transferred."""
    if parameter.is_complex():
        return {}
    if kind == "velocity" and averages.mean is not None and group["momentum"] != 0:
        return {"momentum_buffer": _scaled(averages.mean, 1 / (1 - float(group["momentum"])) / averages.mean_weight)}
    if kind == "average" and averages.mean is not None:
        return {"momentum_buffer": _scaled(averages.mean, 1 / averages.mean_weight)}
    if kind == "rmsprop":
        if averages.square is not None:
            square = _scaled(averages.square, 1 / averages.square_weight)
        elif averages.mean is not None:
            square = _scaled(averages.mean, 1 / averages.mean_weight).square_()
            # Where ḡ is near 0, ḡ² underestimates v, and RMSprop would make steps that are too large. Adding the mean
            # of ḡ² prevents this.
            square.add_(square.mean())
        else:
            return {}
        return {"step": _step_tensor(averages.steps, group, parameter), "square_avg": square}
    if kind == "adam" and (averages.mean is not None or averages.square is not None):
        return _adam_state(group, averages, parameter)
    return {}


def rescale_for_betas(state: dict[str, Any], old: tuple[float, float], new: tuple[float, float]) -> None:
    """Rescale Adam's averages in place for new betas. The bias-corrected averages stay the same."""
    steps = float(state["step"])
    if steps == 0:
        return
    for key, before, after in zip(("exp_avg", "exp_avg_sq"), old, new, strict=True):
        factor = (1 - after**steps) / (1 - before**steps)
        for name in (key, f"max_{key}"):
            if factor != 1 and name in state:
                state[name].mul_(factor)


def _adam_state(group: dict[str, Any], averages: GradientAverages, parameter: Tensor) -> dict[str, Any]:
    steps = averages.steps
    first, second = (1 - float(b) ** steps for b in group["betas"])
    if averages.mean is None:
        mean = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    else:
        mean = _scaled(averages.mean, first / averages.mean_weight)
    if averages.square is not None:
        square = _scaled(averages.square, second / averages.square_weight)
    else:
        assert averages.mean is not None
        square = _scaled(averages.mean, 1 / averages.mean_weight).square_().mul_(second)
    state = {"step": _step_tensor(steps, group, parameter), "exp_avg": mean, "exp_avg_sq": square}
    if group.get("amsgrad"):
        max_square = averages.max_square
        state["max_exp_avg_sq"] = (
            square.clone() if max_square is None else _scaled(max_square, second / averages.square_weight)
        )
    return state


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor.detach().clone() if factor == 1 else tensor.detach() * factor


def _step_tensor(steps: float, group: dict[str, Any], parameter: Tensor) -> Tensor:
    # On the same device and in the same dtype as torch's own `step`.
    on_device = bool(group.get("capturable") or group.get("fused"))
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype = torch.float64 if wide else torch.float32
    return torch.full((), steps, dtype=dtype, device=parameter.device if on_device else "cpu")


def _window(momentum: float) -> float:
    return float(max(1, round(1 / (1 - momentum)))) if momentum < 1 else 1.0
