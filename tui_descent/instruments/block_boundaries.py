"""The chain rule's factors: the size of dL/dh at every boundary between units, all from one backward pass.

Tensor hooks, attached for the sampled step alone: a module's full-backward hook costs most of a step while it is idle.
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
from tui_descent.instruments.tensor_groups import size_of


class BlockBoundaries:
    """dL/dh at the input of every unit and at the last one's output."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = list(units)
        self._handles: list[RemovableHandle] = []
        self._sizes: dict[int, Tensor | float] = {}
        self._passes = [0] * len(self.units)

    def attach(self) -> None:
        """Listen to the next forward pass and its backward."""
        self.detach()
        self._sizes.clear()
        self._passes = [0] * len(self.units)
        for n, unit in enumerate(self.units):
            hook = partial(self._enter, n)
            self._handles.append(unit.module.register_forward_pre_hook(hook, with_kwargs=True))
        if self.units:
            self._handles.append(self.units[-1].module.register_forward_hook(self._leave))

    def detach(self) -> None:
        """Stop listening to forward passes; tensors already met still tell their gradient."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def factors(self) -> Deferred[list[float | None]]:
        """‖dL/dh_l‖_F / ‖dL/dh_{l+1}‖_F of each unit; their product telescopes from the last boundary to the first.

        None where no signal came back or a unit ran more than once. Schoenholz et al. 2017, arXiv 1611.01232.
        """
        found, self._sizes = self._sizes, {}
        once = [passes == 1 for passes in self._passes]
        on_device = {n: size for n, size in found.items() if isinstance(size, Tensor)}
        on_host = {n: size for n, size in found.items() if not isinstance(size, Tensor)}

        def read(values: Sequence[float]) -> list[float | None]:
            arrived = on_host | dict(zip(on_device, values, strict=True))
            signals = [arrived.get(n) if all(once[max(0, n - 1) : n + 1]) else None for n in range(len(once) + 1)]
            return [None if below is None or not above else below / above for below, above in pairwise(signals)]

        return Deferred([size.reshape(1) for size in on_device.values()], read)

    def _enter(self, n: int, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._passes[n] += 1
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        self._listen(n, first)

    def _leave(self, module: object, args: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        self._listen(len(self.units), first if isinstance(first, Tensor) else None)

    def _listen(self, n: int, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(partial(self._keep, n))  # type: ignore[no-untyped-call]

    def _keep(self, n: int, grad: Tensor) -> None:
        self._sizes[n] = size_of(grad)  # here, where it lies in the cache: kept for later it would take memory
