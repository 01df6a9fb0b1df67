"""Finds NaN and infinite values before they reach the weights, and reports the step and the first layer affected.

`Results` calls the check of the losses, `OptimizerHooks` that of the gradients. `Control.handle_fault` then holds the
run, ends it, or only reports the fault. On CUDA the checks run on the device, in `loss_readback.py`.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.instruments.not_measured import why_not_measured

# If a weight has more elements than this, summing its gradient takes a noticeable share of a step.
LARGE = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong at a step; `text` is shown to the user."""

    step: int
    text: str
    what: Literal["loss", "gradient"]
    layer: str | None = None


class NanGuard:
    """Checks the loss of every step, and the gradient of the input-most layer.

    The input-most layer is the first layer in forward order that has a gradient. Backpropagation ends there, so a
    non-finite gradient of a later layer makes this gradient non-finite too.
    """

    def __init__(self, model: nn.Module, replay_forward: Callable[[], object] | None = None) -> None:
        self._layers: Sequence[WatchedLayer] = ()
        # The parameter to check, remembered while all layers before it are frozen, and the last of the frozen weights.
        self._input_most: nn.Parameter | None = None
        self._frozen: nn.Parameter | None = None
        self._model = model
        self._replay_forward = replay_forward

    @property
    def layers(self) -> Sequence[WatchedLayer]:
        """The watched layers in forward order."""
        return self._layers

    @layers.setter
    def layers(self, layers: Sequence[WatchedLayer]) -> None:
        self._layers = layers
        self._input_most, self._frozen = next((_to_check(watched) for watched in layers), None), None

    def loss_fault(self, step: int, value: float, *, after: bool = False) -> Fault | None:
        """The fault if the loss `value` is not finite; None if it is finite. `after`: the update was already made."""
        if math.isfinite(value):
            return None
        when = "found just after the update" if after else "before the update"
        where = self._first_non_finite()
        return Fault(
            step, f"loss is {value} at step {step}{f', first in {where}' if where else ''}, {when}", "loss", where
        )

    def gradient_is_finite(self) -> bool:
        """Whether the input-most layer has a gradient and it is finite. In a large layer only the bias is checked."""
        parameter = self._input_most
        unfrozen = self._frozen is not None and self._frozen.grad is not None
        grad = parameter.grad if parameter is not None else None
        if grad is None or unfrozen:
            parameter = self.find_input_most()
            grad = parameter.grad if parameter is not None else None
        return grad is not None and cmath.isfinite(grad.sum().item())  # synchronises on a GPU

    def find_input_most(self) -> nn.Parameter | None:
        """Find the parameter to check again, since the loop may have frozen or unfrozen layers; None without gradients.

        The parameter is remembered only if no layer before it can have a gradient at the next step.
        """
        self._input_most = self._frozen = None
        first = next((n for n, watched in enumerate(self._layers) if _has_gradient(watched.weight)), None)
        if first is None:
            return None
        parameter = _to_check(self._layers[first])
        if not any(watched.weight.requires_grad for watched in self._layers[:first]):
            self._input_most = parameter
            self._frozen = self._layers[first - 1].weight if first else None
        return parameter

    def gradient_fault(self, step: int) -> Fault | None:
        """The fault if the weight gradient of the input-most layer is not finite; None if it is finite."""
        first = next((w.weight.grad for w in self.layers if _has_gradient(w.weight)), None)
        if first is None or cmath.isfinite(first.sum().item()):  # synchronises on a GPU
            return None
        if _finite(first):
            return None  # the sum overflowed, the elements are finite
        bad = [w.layer.name for w in self.layers if w.weight.grad is not None and not _finite(w.weight.grad)]
        # Backpropagation starts at the output: the last layer in forward order became non-finite first.
        text = f"gradient of {bad[-1]} is not finite at step {step}, before the update"
        return Fault(step, text, "gradient", bad[-1])

    def input_most_gradient(self) -> Tensor | None:
        """The weight gradient of the input-most layer; None if no layer has a gradient."""
        return next((watched.weight.grad for watched in self.layers if _has_gradient(watched.weight)), None)

    def deferred_fault(self, step: int, loss: float | None, *, since: int, stopped: bool) -> Fault:
        """A fault that was found `since` updates after the step. `loss` is None if a gradient was not finite.

        `stopped` means that the device has skipped this update and all later ones. Otherwise this waits for the device.
        """
        what = "the gradient that reaches the input is not finite" if loss is None else f"loss is {loss}"
        when = f"found {since} update{'s' * (since != 1)} later" if since else "found just after the update"
        where = None
        if stopped:
            outcome = "this update and all later ones were skipped: the weights are unchanged"
        elif (where := self._non_finite_weights()) is not None:
            outcome = f"the update was made and the weights of {where} are now non-finite"
        else:
            outcome = "the update was made; all weights are still finite"
        kind: Literal["loss", "gradient"] = "gradient" if loss is None else "loss"
        return Fault(step, f"{what} at step {step}, {when}; {outcome}", kind, where)

    def _non_finite_weights(self) -> str | None:
        return next((w.layer.name for w in self.layers if not _finite(w.weight)), None)

    def _first_non_finite(self) -> str | None:
        if (name := self._non_finite_weights()) is not None:
            return f"the weights of {name}"
        return self._first_non_finite_output() if self._replay_forward is not None else None

    def _first_non_finite_output(self) -> str | None:
        """Repeat the forward pass. Returns the name of the first module with a non-finite output."""
        found: list[str] = []

        def check(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if not found and isinstance(output, Tensor) and not _finite(output):
                    found.append(name)

            return hook

        modules = ((n, m) for n, m in self._model.named_modules() if n and not isinstance(m, torch.jit.ScriptModule))
        handles = [m.register_forward_hook(check(n)) for n, m in modules]
        try:
            assert self._replay_forward is not None
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._replay_forward()
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


def _to_check(watched: WatchedLayer) -> nn.Parameter:
    """The parameter whose gradient is checked: the layer's bias if its weight is large, else the weight."""
    weight, bias = watched.weight, getattr(watched.module, "bias", None)
    # Weight and bias gradients share δ, so a non-finite value shows in both; the bias is cheaper to check.
    use_bias = isinstance(bias, nn.Parameter) and bias.requires_grad and weight.numel() > LARGE
    return bias if use_bias else weight  # type: ignore[return-value]


def _has_gradient(weight: nn.Parameter) -> bool:
    """Whether a weight has a gradient that can be checked: an empty one tells nothing about the other layers."""
    grad = weight.grad
    return grad is not None and not grad.is_meta and grad.numel() > 0


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, as far as they can be read."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return why_not_measured(tensor) is not None or bool(tensor.isfinite().all())
