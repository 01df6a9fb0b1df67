"""The factors of the chain rule: the norm of dL/dh at every boundary between units, measured in one backward pass.

The hooks are on tensors and are attached only for a measured step. A module's full backward hook would slow down every
step, even when it does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.deferred import Deferred
from tui_descent.instruments.net_structure import Unit
from tui_descent.instruments.row_sums import l2_norm


class BlockBoundaries:
    """Measures dL/dh at the input of every unit and at the output of the last one."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = list(units)
        self._handles: list[RemovableHandle] = []
        self._norms: dict[int, Tensor | float] = {}  # key n: ‖dL/dh‖ at the input of unit n
        self._passes = [0] * len(self.units)

    def attach(self) -> None:
        """Measure the next forward pass and its backward pass."""
        self.detach()
        self._norms.clear()
        self._passes = [0] * len(self.units)
        for n, unit in enumerate(self.units):
            hook = partial(self._before_unit, n)
            self._handles.append(unit.module.register_forward_pre_hook(hook, with_kwargs=True))
        if self.units:
            self._handles.append(self.units[-1].module.register_forward_hook(self._after_last_unit))

    def detach(self) -> None:
        """Remove the forward hooks. Gradients of tensors that already have a hook are still measured."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def factors(self) -> Deferred[list[float | None]]:
        """‖dL/dh_l‖_F / ‖dL/dh_{l+1}‖_F of each unit; their product is ‖dL/dh_0‖_F / ‖dL/dh_L‖_F.

        A factor is None if no gradient reached the unit, or if it ran more than once. Source: Schoenholz et al. 2017,
        arXiv 1611.01232.
        """
        norms, self._norms = self._norms, {}
        once = [passes == 1 for passes in self._passes]
        on_device = {n: norm for n, norm in norms.items() if isinstance(norm, Tensor)}
        on_host = {n: norm for n, norm in norms.items() if not isinstance(norm, Tensor)}

        def read(values: Sequence[float]) -> list[float | None]:
            known = on_host | dict(zip(on_device, values, strict=True))
            # A boundary counts if the units on both of its sides ran once.
            signals = [known.get(n) if all(once[max(0, n - 1) : n + 1]) else None for n in range(len(once) + 1)]
            return [None if below is None or not above else below / above for below, above in pairwise(signals)]

        return Deferred([norm.reshape(1) for norm in on_device.values()], read)

    def _before_unit(self, n: int, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._passes[n] += 1
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        self._measure_gradient_of(first, n)

    def _after_last_unit(self, module: object, args: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        self._measure_gradient_of(first if isinstance(first, Tensor) else None, len(self.units))

    def _measure_gradient_of(self, tensor: Tensor | None, n: int) -> None:
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(partial(self._measure, n))  # type: ignore[no-untyped-call]

    def _measure(self, n: int, grad: Tensor) -> None:
        self._norms[n] = l2_norm(grad)  # now, while `grad` is in the cache; keeping `grad` would take memory
