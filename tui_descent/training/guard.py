"""Not a number: found before it reaches the weights, with the step and the first layer that went bad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tui_descent.instruments.structure import WatchedLayer


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong at a step, in words for the screen."""

    step: int
    text: str
    what: Literal["loss", "gradient"]
    layer: str | None = None


class Guard:
    """Looks at the loss and the input-most gradient of every step: together they saw every first non-finite event."""

    def __init__(self, model: nn.Module, forward_again: Callable[[], object] | None = None) -> None:
        self.layers: Sequence[WatchedLayer] = ()
        self._model = model
        self._forward_again = forward_again

    def bad_loss(self, step: int, value: float, *, after: bool = False) -> Fault:
        """The fault of a loss that is no number."""
        when = "found just after the update" if after else "before the update"
        where = self._first_bad_layer()
        return Fault(
            step, f"loss is {value} at step {step}{f', first in {where}' if where else ''}, {when}", "loss", where
        )

    def fine(self) -> bool:
        """Whether the input-most layer's gradient is there and finite: one small read a step."""
        grad = self.layers[0].weight.grad if self.layers else None
        return grad is not None and math.isfinite(grad.sum().item())  # synchronises on a GPU

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

    def _first_bad_layer(self) -> str | None:
        for watched in self.layers:
            if not _finite(watched.weight):
                return f"the weights of {watched.layer.name}"
        return self._first_bad_output() if self._forward_again is not None else None

    def _first_bad_output(self) -> str | None:
        """Run the forward pass once more and look at every module's output."""
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if not found and isinstance(output, Tensor) and not _finite(output):
                    found.append(name)

            return hook

        handles = [m.register_forward_hook(look(n)) for n, m in self._model.named_modules() if n]
        try:
            assert self._forward_again is not None
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._forward_again()
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
