"""What one optimizer remembers of a parameter, handed to another.

ḡ is the mean gradient, v the mean of its square, t the updates made. `velocity` is SGD's buffer with momentum μ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["velocity", "average", "adam", "rmsprop", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One parameter's past: `mean` = `mean_weight`·ḡ, `square` = `square_weight`·v.

    `steps` is t, or where nobody counted it how many updates the mean looks back.
    """

    mean: Tensor | None = None
    mean_weight: float = 1.0
    square: Tensor | None = None
    square_weight: float = 1.0
    greatest: Tensor | None = None
    steps: float = 0.0


def read(kind: Kind, group: dict[str, Any], state: dict[str, Any]) -> Memory:
    """What an optimizer of this kind knows of a parameter; its group's options say how it weighs the past."""
    if kind == "velocity":
        momentum = float(group["momentum"])
        if momentum == 0 or state.get("momentum_buffer") is None:
            return Memory()
        weight = (1 - float(group["dampening"])) / (1 - momentum)
        return Memory(mean=state["momentum_buffer"], mean_weight=weight, steps=_horizon(momentum))
    if kind == "average" and state.get("momentum_buffer") is not None:
        return Memory(mean=state["momentum_buffer"], steps=_horizon(float(group["momentum"])))
    if kind == "adam" and (steps := float(state.get("step", 0))) > 0:
        first, second = (1 - float(b) ** steps for b in group["betas"])
        return Memory(
            mean=state["exp_avg"],
            mean_weight=first,
            square=state["exp_avg_sq"],
            square_weight=second,
            greatest=state.get("max_exp_avg_sq"),
            steps=steps,
        )
    if kind == "rmsprop" and (steps := float(state.get("step", 0))) > 0:
        return Memory(square=state["square_avg"], steps=steps)
    return Memory()


def write(kind: Kind, group: dict[str, Any], memory: Memory, parameter: Tensor) -> dict[str, Any]:
    """The state that an optimizer of this kind starts from; empty where nothing carries over."""
    if parameter.is_complex():
        return {}
    if kind == "velocity" and memory.mean is not None and group["momentum"] != 0:
        return {"momentum_buffer": _times(memory.mean, 1 / (1 - float(group["momentum"])) / memory.mean_weight)}
    if kind == "average" and memory.mean is not None:
        return {"momentum_buffer": _times(memory.mean, 1 / memory.mean_weight)}
    if kind == "rmsprop":
        if memory.square is not None:
            square = _times(memory.square, 1 / memory.square_weight)
        elif memory.mean is not None:
            square = _times(memory.mean, 1 / memory.mean_weight).square_()
            # Where a mean passes through 0 it says nothing of the square, and nothing here corrects a v too small.
            square.add_(square.mean())
        else:
            return {}
        return {"step": _count(memory.steps, group, parameter), "square_avg": square}
    if kind == "adam" and (memory.mean is not None or memory.square is not None):
        return _adam(group, memory, parameter)
    return {}


def reweigh(state: dict[str, Any], old: tuple[float, float], new: tuple[float, float]) -> None:
    """Adam's averages for new betas, in place: with their bias taken off they stay what they were."""
    steps = float(state["step"])
    if steps == 0:
        return
    for key, before, after in zip(("exp_avg", "exp_avg_sq"), old, new, strict=True):
        factor = (1 - after**steps) / (1 - before**steps)
        for name in (key, f"max_{key}"):
            if factor != 1 and name in state:
                state[name].mul_(factor)


def _adam(group: dict[str, Any], memory: Memory, parameter: Tensor) -> dict[str, Any]:
    steps = memory.steps
    first, second = (1 - float(b) ** steps for b in group["betas"])
    if memory.mean is None:
        mean = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    else:
        mean = _times(memory.mean, first / memory.mean_weight)
    if memory.square is not None:
        square = _times(memory.square, second / memory.square_weight)
    else:
        assert memory.mean is not None
        square = _times(memory.mean, 1 / memory.mean_weight).square_().mul_(second)
    state = {"step": _count(steps, group, parameter), "exp_avg": mean, "exp_avg_sq": square}
    if group.get("amsgrad"):
        known = memory.greatest
        state["max_exp_avg_sq"] = square.clone() if known is None else _times(known, second / memory.square_weight)
    return state


def _times(tensor: Tensor, factor: float) -> Tensor:
    return tensor.detach().clone() if factor == 1 else tensor.detach() * factor


def _count(steps: float, group: dict[str, Any], parameter: Tensor) -> Tensor:
    # Where torch itself keeps it, and in its type.
    on_device = bool(group.get("capturable") or group.get("fused"))
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype = torch.float64 if wide else torch.float32
    return torch.full((), steps, dtype=dtype, device=parameter.device if on_device else "cpu")


def _horizon(momentum: float) -> float:
    return float(max(1, round(1 / (1 - momentum)))) if momentum < 1 else 1.0
