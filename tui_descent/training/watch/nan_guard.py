"""Finds NaN and infinite values before they reach the weights, and reports the step and the affected layers.

`Results` calls the check of the losses, `OptimizerHooks` the check of the gradients. `Control.handle_fault` then holds
the run, ends it, or only reports the fault; `fault_search.py` finds the cause. On CUDA the checks run on the device, in
`loss_readback.py`.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from itertools import chain
from typing import Literal

from torch import Tensor, nn

from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.instruments.not_measured import all_finite
from tui_descent.protocol.layer_names import in_words
from tui_descent.training.probes.nonfinite_search import Kind, Origin, kind_of, weight_origin
from tui_descent.training.watch.fault import Fault, LayerGradients

# If a weight has more elements than this, summing its gradient takes a noticeable share of a step.
LARGE = 1 << 16


class NanGuard:
    """Checks the loss of every step, and the gradient of the input-most layer.

    The input-most layer is the first layer in forward order that has a gradient. Backpropagation ends there, so a
    non-finite gradient of a later layer makes this gradient non-finite too. If only the biases of a layer train, their
    gradients count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: Sequence[WatchedLayer] = ()
        # The parameter to check, and the last frozen weight before it. Both are remembered while all layers before the
        # parameter are frozen.
        self._input_most: nn.Parameter | None = None
        self._frozen: nn.Parameter | None = None
        self._model = model

    @property
    def layers(self) -> Sequence[WatchedLayer]:
        """The watched layers in forward order."""
        return self._layers

    @layers.setter
    def layers(self, layers: Sequence[WatchedLayer]) -> None:
        self._layers = layers
        readable = (watched for watched in layers if watched.layer.not_measured is None)
        self._input_most, self._frozen = next(map(_to_check, readable), None), None

    def loss_fault(self, step: int, value: float, *, updated: bool = False) -> Fault | None:
        """The fault if the loss `value` is not finite; None if it is finite. `updated` says that the update was already
        made.
        """
        if math.isfinite(value):
            return None
        return Fault(step=step, what="loss", loss=value, updated=updated)

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
        """Look for the parameter to check again, because the loop may have frozen or unfrozen layers. None if there are
        no gradients.

        The parameter is remembered only if no layer before it can have a gradient at the next step.
        """
        self._input_most = self._frozen = None
        first = next((n for n, watched in enumerate(self._layers) if _has_gradient(watched.weight)), None)
        if first is None:
            found = next((w for w in self._layers if _trained_bias(w) is not None), None)
            if found is not None:
                self._input_most, self._frozen = _trained_bias(found), found.weight
            return self._input_most
        parameter = _to_check(self._layers[first])
        if not any(watched.weight.requires_grad for watched in self._layers[:first]):
            self._input_most = parameter
            self._frozen = self._layers[first - 1].weight if first else None
        return parameter

    def gradient_fault(self, step: int) -> Fault | None:
        """The fault if the weight gradient of the input-most layer is not finite; None if it is finite."""
        first = self.input_most_gradient()
        if first is None or cmath.isfinite(first.sum().item()):  # synchronises on a GPU
            return None
        if all_finite(first):
            return None  # the sum overflowed, the elements are finite
        gradients = self._layer_gradients()
        return Fault(
            step=step,
            what="gradient",
            gradients=gradients,
            layer=gradients.bad[-1],
            weights=non_finite_weights(self._model),
        )

    def _layer_gradients(self) -> LayerGradients:
        layers = [watched for watched in self.layers if watched.weight.grad is not None]
        grads = [watched.weight.grad for watched in layers]
        if not layers:
            layers = [watched for watched in self.layers if _trained_bias(watched) is not None]
            grads = [bias.grad for watched in layers if (bias := _trained_bias(watched)) is not None]
        kinds: list[tuple[str, Kind]] = [
            (w.layer.name, kind_of(grad)) for w, grad in zip(layers, grads, strict=True) if grad is not None
        ]
        bad = [n for n, (_, kind) in enumerate(kinds) if kind]
        worst: Kind = "nan" if any(kind == "nan" for _, kind in kinds) else "inf"
        # Backpropagation starts at the output: the last layer in forward order became non-finite first.
        return LayerGradients(
            bad=tuple(kinds[n][0] for n in bad),
            finite=tuple(name for name, _ in kinds[bad[-1] + 1 :]),
            before=tuple(name for name, kind in kinds[: bad[-1]] if not kind),
            kind=worst,
            from_input=_input_is_bad(layers[bad[-1]]),
        )

    def input_most_gradient(self) -> Tensor | None:
        """The gradient of the input-most layer's weight, or of its bias if only biases train; None if there is none."""
        weights = (watched.weight for watched in self.layers if _has_gradient(watched.weight))
        biases = (bias for watched in self.layers if (bias := _trained_bias(watched)) is not None)
        return next((parameter.grad for parameter in chain(weights, biases)), None)

    def deferred_fault(self, step: int, loss: float | None, *, since: int, stopped: bool) -> Fault:
        """A fault that was found `since` updates after the step. `loss` is None if a gradient was not finite.

        `stopped` means that the device has skipped this update and all later ones. Otherwise this waits for the device.
        """
        what = "the gradient that reaches the input is not finite" if loss is None else f"loss is {loss}"
        when = f"found {since} update{'s' * (since != 1)} later" if since else "found just after the update"
        weights = None if stopped else non_finite_weights(self._model)
        if stopped:
            outcome = "this update and all later ones were skipped: the weights are unchanged"
        elif weights is not None:
            outcome = (
                f"the update was made and the weights of {in_words(weights.layer or 'the net')} are now non-finite"
            )
        else:
            outcome = "the update was made; all weights are still finite"
        kind: Literal["loss", "gradient"] = "gradient" if loss is None else "loss"
        return Fault(
            step=step,
            what=kind,
            text=f"{what} at step {step}, {when}; {outcome}",
            loss=loss,
            layer=None if weights is None else weights.layer,
            weights_finite=weights is None,
            updated=not stopped,
            deferred=True,
        )


def non_finite_weights(model: nn.Module) -> Origin | None:
    """The first parameter that is not finite: its module and its worst value; None if all are finite."""
    for name, parameter in model.named_parameters():
        if kind := kind_of(parameter):
            return weight_origin(name, kind)
    return None


def nan_buffer(model: nn.Module) -> Origin | None:
    """The first buffer with NaN, such as the running mean of a batch norm. Infinities may be a mask."""
    named = ((name, kind_of(buffer)) for name, buffer in model.named_buffers())
    return next((weight_origin(name, "nan") for name, kind in named if kind == "nan"), None)


def _to_check(watched: WatchedLayer) -> nn.Parameter:
    """The parameter whose gradient is checked: the layer's bias if its weight is large, else the weight."""
    weight, bias = watched.weight, getattr(watched.module, "bias", None)
    # The gradients of weight and bias share δ, so a non-finite value shows in both. The bias is cheaper to check.
    use_bias = isinstance(bias, nn.Parameter) and bias.requires_grad and weight.numel() > LARGE
    return bias if use_bias else weight  # type: ignore[return-value]


def _trained_bias(watched: WatchedLayer) -> nn.Parameter | None:
    """The layer's bias if it has a gradient, else None."""
    bias = getattr(watched.module, "bias", None)
    return bias if isinstance(bias, nn.Parameter) and _has_gradient(bias) else None


def _input_is_bad(watched: WatchedLayer) -> bool:
    """Whether the gradients of a layer y = W·x + b show that x is not finite.

    The gradients are δ for the bias and δ·x for the weight. So if the bias's gradient is finite, δ is finite. An
    element of x that is not finite then makes the weight's gradient non-finite for all outputs.
    """
    bias, grad = getattr(watched.module, "bias", None), watched.weight.grad
    multiplies = isinstance(watched.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not multiplies or not isinstance(bias, nn.Parameter) or grad is None or bias.grad is None:
        return False
    return len(grad) > 1 and all_finite(bias.grad) and bool((~grad.isfinite()).all(0).any())


def _has_gradient(weight: nn.Parameter) -> bool:
    """Whether a weight has a gradient that can be checked. An empty gradient says nothing about the other layers."""
    grad = weight.grad
    return grad is not None and not grad.is_meta and grad.numel() > 0
