"""The chain rule's factors: the size of dL/dh at every boundary between units, all from one backward pass.

Tensor hooks, attached for the sampled step alone: a module's full-backward hook costs most of a step while it is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.groups import Groups
from tui_descent.instruments.structure import Unit


class Boundaries:
    """dL/dh at the input of every unit and at the last one's output."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = list(units)
        self._handles: list[RemovableHandle] = []
        self._grads: dict[int, Tensor] = {}
        self._passes = [0] * len(self.units)

    def attach(self) -> None:
        """Listen to the next forward pass and its backward."""
        self.detach()
        self._grads.clear()
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

    def signals(self) -> list[float | None]:
        """‖dL/dh‖_F at each unit's input and after the last; None where none came back or a unit ran more than once."""
        known = sorted(self._grads)
        tensors = [self._grads[n] for n in known]
        groups = Groups(tensors)
        values = groups.norms(groups.rows(tensors)).tolist()
        found: list[float | None] = [None] * (len(self.units) + 1)
        for n, value in zip(known, values, strict=True):
            found[n] = value
        self._grads.clear()
        once = [passes == 1 for passes in self._passes]
        return [v if all(once[max(0, n - 1) : n + 1]) else None for n, v in enumerate(found)]

    def factors(self) -> list[float | None]:
        """‖dL/dh_l‖ / ‖dL/dh_{l+1}‖ of each unit; their product telescopes from the last boundary to the first.

        Schoenholz et al. 2017, arXiv 1611.01232.
        """
        signals = self.signals()
        return [None if below is None or not above else below / above for below, above in pairwise(signals)]

    def _enter(self, n: int, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._passes[n] += 1
        self._listen(n, next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None))

    def _leave(self, module: object, args: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        self._listen(len(self.units), first if isinstance(first, Tensor) else None)

    def _listen(self, n: int, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.requires_grad:
            tensor.register_hook(self._keeper_of(n))  # type: ignore[no-untyped-call]

    def _keeper_of(self, n: int) -> Callable[[Tensor], None]:
        def keep(grad: Tensor) -> None:
            self._grads[n] = grad

        return keep
