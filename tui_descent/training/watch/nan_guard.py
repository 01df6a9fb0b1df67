"""Finds NaN and infinity before they reach the weights, and names the step and the first bad layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tui_descent.instruments.net_structure import WatchedLayer

# Reading weights of more numbers than this takes a noticeable share of a step.
LARGE = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong at a step, in words for the screen."""

    step: int
    text: str
    what: Literal["loss", "gradient"]
    layer: str | None = None


class NanGuard:
    """Looks at the loss and the input-most gradient of every step: together they saw every first non-finite event."""

    def __init__(self, model: nn.Module, forward_again: Callable[[], object] | None = None) -> None:
        self._layers: Sequence[WatchedLayer] = ()
        # The parameter to look at while no layer before it can have a gradient, and the last frozen one before it.
        self._input_most: nn.Parameter | None = None
        self._frozen: nn.Parameter | None = None
        self._model = model
        self._forward_again = forward_again

    @property
    def layers(self) -> Sequence[WatchedLayer]:
        """In forward order."""
        return self._layers

    @layers.setter
    def layers(self, layers: Sequence[WatchedLayer]) -> None:
        self._layers = layers
        self._input_most, self._frozen = next((_small(watched) for watched in layers), None), None

    def bad_loss(self, step: int, value: float, *, after: bool = False) -> Fault:
        """The fault of a non-finite loss."""
        when = "found just after the update" if after else "before the update"
        where = self._first_bad_layer()
        return Fault(
            step, f"loss is {value} at step {step}{f', first in {where}' if where else ''}, {when}", "loss", where
        )

    def fine(self) -> bool:
        """Whether the input-most gradient, of a large layer its bias's, is there and finite: one small read."""
        parameter = self._input_most
        thawed = self._frozen is not None and self._frozen.grad is not None
        if parameter is None or parameter.grad is None or thawed:
            parameter = self._find_input_most()
        if parameter is None or parameter.grad is None:
            return False
        total: float = parameter.grad.sum().item()  # synchronises on a GPU
        return math.isfinite(total)

    def refresh(self) -> None:
        """Look for the input-most gradient again: the loop may have frozen or unfrozen layers."""
        self._find_input_most()

    def _find_input_most(self) -> nn.Parameter | None:
        """The first that has a gradient; remembered only where none before it can have one in the next step."""
        self._input_most = self._frozen = None
        first = next((n for n, watched in enumerate(self._layers) if watched.weight.grad is not None), None)
        if first is None:
            return None
        parameter = _small(self._layers[first])
        if not any(watched.weight.requires_grad for watched in self._layers[:first]):
            self._input_most = parameter
            self._frozen = self._layers[first - 1].weight if first else None
        return parameter

    def bad_gradient(self, step: int) -> Fault | None:
        """The fault of the input-most gradient, if it is not finite."""
        first = next((w.weight.grad for w in self.layers if w.weight.grad is not None), None)
        if first is None or math.isfinite(first.sum().item()):  # synchronises on a GPU
            return None
        if bool(first.isfinite().all()):
            return None  # finite numbers whose sum is not
        bad = [w.layer.name for w in self.layers if w.weight.grad is not None and not _finite(w.weight.grad)]
        # Backward comes from the output: the last layer in forward order was the first to go.
        text = f"gradient of {bad[-1]} is not finite at step {step}, before the update"
        return Fault(step, text, "gradient", bad[-1])

    def input_most(self) -> Tensor | None:
        """The gradient of the input-most layer that has one, on its device."""
        grads = (watched.weight.grad for watched in self.layers)
        return next((grad for grad in grads if grad is not None), None)

    def found_later(self, step: int, loss: float | None, *, since: int, stopped: bool) -> Fault:
        """The fault of a step that was found `since` updates later: of its `loss`, or with None of a gradient.

        `stopped`: the device had turned it and all after it into no-ops. Waits for the device.
        """
        what = "the gradient that reaches the input is not finite" if loss is None else f"loss is {loss}"
        when = f"found {since} update{'s' * (since != 1)} later" if since else "found just after the update"
        where = None
        if stopped:
            fate = "no update was made from there on: the weights are as they were"
        elif (where := self._bad_weights()) is not None:
            fate = f"the update was made and the weights of {where} went bad"
        else:
            fate = "the update was made, the weights are still numbers"
        kind: Literal["loss", "gradient"] = "gradient" if loss is None else "loss"
        return Fault(step, f"{what} at step {step}, {when}; {fate}", kind, where)

    def _bad_weights(self) -> str | None:
        return next((w.layer.name for w in self.layers if not _finite(w.weight)), None)

    def _first_bad_layer(self) -> str | None:
        if (name := self._bad_weights()) is not None:
            return f"the weights of {name}"
        return self._first_bad_output() if self._forward_again is not None else None

    def _first_bad_output(self) -> str | None:
        """Run the forward pass once more and look at every module's output."""
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if not found and isinstance(output, Tensor) and not _finite(output):
                    found.append(name)

            return hook

        heard = ((n, m) for n, m in self._model.named_modules() if n and not isinstance(m, torch.jit.ScriptModule))
        handles = [m.register_forward_hook(look(n)) for n, m in heard]
        try:
            assert self._forward_again is not None
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._forward_again()
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


def _small(watched: WatchedLayer) -> nn.Parameter:
    """The layer's bias where its weight is large, else the weight."""
    weight, bias = watched.weight, getattr(watched.module, "bias", None)
    # Weight and bias gradients share δ, so a non-finite value shows in both; the bias is cheaper to check.
    few = isinstance(bias, nn.Parameter) and bias.requires_grad and weight.numel() > LARGE
    return bias if few else weight  # type: ignore[return-value]


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
