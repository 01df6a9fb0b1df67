"""Measures the gradients of tensors in a backward pass, through hooks on the tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.module_hooks import plain

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GradientHooks(Generic[K, V]):
    """Calls `measure` with the gradient of each tensor, and keeps the result under a key that the caller chooses. A
    gradient that is itself part of a graph (`create_graph=True`) belongs to a derivative inside the loss, such as a
    gradient penalty. Such a gradient counts only if no other gradient has reached the tensor.
    """

    def __init__(self, measure: Callable[[Tensor], V], failures: Failures) -> None:
        self._measure, self._failures = measure, failures
        self._handles: list[RemovableHandle] = []
        # By key: what was measured, once per gradient. None means that a gradient cannot be measured.
        self._values: dict[K, list[V | None]] = {}
        self._inner_values: dict[K, list[V | None]] = {}  # the same for gradients that are part of a graph

    def listen(self, key: K, tensor: Tensor | None, part: str) -> None:
        """Measure the gradient of `tensor`, if it gets one. `part` names the measurement in the message if it fails."""
        if tensor is not None and tensor.requires_grad and part not in self._failures:
            self._handles.append(tensor.register_hook(partial(self._on_gradient, key, part)))  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Remove the hooks. What was measured is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Remove the hooks and forget what was measured."""
        self.detach()
        self._values.clear()
        self._inner_values.clear()

    def get(self, key: K) -> V | None:
        """What was measured. None if no gradient came, or if several came, because only their sum would be the
        gradient.
        """
        values = self._values.get(key) or self._inner_values.get(key, [])
        return values[0] if len(values) == 1 else None

    def count(self, key: K) -> int:
        """The number of gradients that came."""
        return len(self._values.get(key) or self._inner_values.get(key, []))

    def _on_gradient(self, key: K, part: str, grad: Tensor) -> None:
        try:
            if torch._C._functorch.is_legacy_batchedtensor(grad):
                return  # `is_grads_batched=True`: rows of a Jacobian
            if (
                torch.is_grad_enabled()
            ):  # `create_graph=True`: autograd records operations on gradients and would record ours
                with torch.no_grad():
                    self._add(self._inner_values, key, grad)
            else:
                self._add(self._values, key, grad)
        except Exception as error:  # noqa: BLE001 - it must not end the user's training
            self._values.pop(key, None)
            self._failures.add(part, error)

    def _add(self, values: dict[K, list[V | None]], key: K, grad: Tensor) -> None:
        ordinary = plain(grad)
        values.setdefault(key, []).append(None if ordinary is None else self._measure(ordinary))
