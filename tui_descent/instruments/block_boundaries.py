"""The factors of the chain rule: the norm of dL/dh at every boundary between units, measured in one backward pass.

The gradients are read by hooks on tensors. Full backward hooks of modules are not used, because they would slow down
every step, even when they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor

from tui_descent.instruments.deferred import Deferred
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.gradient_hooks import GradientHooks
from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, first_tensor, version
from tui_descent.instruments.net_structure import Unit
from tui_descent.instruments.row_sums import l2_norm
from tui_descent.protocol.layer_names import in_words

PART = "the chain-rule factors"


class BlockBoundaries:
    """Measures dL/dh at the input of every unit and at the output of the last one.

    The signal h is the first floating-point tensor among a unit's arguments, and in the output of the last one.
    """

    def __init__(self, units: Sequence[Unit], failures: Failures | None = None) -> None:
        self.units = list(units)
        self._failures = failures = Failures() if failures is None else failures
        self._parts = [f"{PART} at {unit.name}" for unit in self.units]
        self._hooks = ModuleHooks(failures)
        for n, unit in enumerate(self.units):
            self._hooks.on_input(unit.module, partial(self._before_unit, n), self._parts[n])
            self._hooks.on_output(unit.module, partial(self._after_unit, n), self._parts[n])
        self._norms: GradientHooks[int, Tensor | float] = GradientHooks(l2_norm, failures)  # key n: at input of unit n
        self._passes = [0] * len(self.units)
        self._no_input: set[int] = set()  # the units that got no tensor as a positional argument

    def attach(self) -> None:
        """Measure the next forward pass and its backward pass."""
        self._norms.clear()
        self._passes = [0] * len(self.units)
        self._no_input.clear()
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks. What they have measured is kept for `factors`."""
        self._hooks.detach()
        self._norms.detach()

    def factors(self) -> Deferred[list[float | None]]:
        """‖dL/dh_l‖_F / ‖dL/dh_{l+1}‖_F of each unit; their product is ‖dL/dh_0‖_F / ‖dL/dh_L‖_F.

        A factor is None if no gradient reached the unit, if several did, or if the unit ran more than once. Source:
        Schoenholz et al. 2017, arXiv 1611.01232.
        """
        norms = {n: norm for n in range(len(self.units) + 1) if (norm := self._norms.get(n)) is not None}
        self._report_gaps()
        self._norms.clear()
        once = [passes == 1 for passes in self._passes]
        on_device = {n: norm for n, norm in norms.items() if isinstance(norm, Tensor)}
        on_host = {n: norm for n, norm in norms.items() if not isinstance(norm, Tensor)}

        def read(values: Sequence[float]) -> list[float | None]:
            known = on_host | dict(zip(on_device, values, strict=True))
            # A boundary counts only if the units on both sides of it ran exactly once.
            signals = [known.get(n) if all(once[max(0, n - 1) : n + 1]) else None for n in range(len(once) + 1)]
            return [None if below is None or not above else below / above for below, above in pairwise(signals)]

        return Deferred([norm.reshape(1) for norm in on_device.values()], read)

    def _report_gaps(self) -> None:
        if not self.units:
            return
        if (reason := self._hooks.silence("the blocks")) is not None:
            self._failures.leave_out(PART, reason)
        if not any(self._passes):
            return
        for n, unit in enumerate(self.units):
            if self._passes[n] > 1:
                self._failures.leave_out(PART, f"{in_words(unit.name)} ran {self._passes[n]} times in one step")
            elif self._passes[n] == 0 and self._hooks.reason is not None:
                self._failures.leave_out(PART, f"{unit.name} runs {self._hooks.reason}")
            elif self._norms.count(n) > 1:
                self._failures.leave_out(PART, f"several backward passes went through {unit.name} in one step")

    def _before_unit(self, n: int, args: Args) -> None:
        self._passes[n] += 1
        if (signal := first_tensor(args)) is None:
            self._no_input.add(n)
        self._norms.listen(n, signal, self._parts[n])

    def _after_unit(self, n: int, args: Args, kwargs: Kwargs, output: Any) -> None:
        # The keyword arguments are known only now. An argument that was changed in place is not used: the unit itself
        # may have changed it, so it may no longer be the unit's input.
        if n in self._no_input and (signal := first_tensor(kwargs)) is not None and not version(signal):
            self._norms.listen(n, signal, self._parts[n])
        if n == len(self.units) - 1:
            self._norms.listen(n + 1, first_tensor(output), self._parts[n])
