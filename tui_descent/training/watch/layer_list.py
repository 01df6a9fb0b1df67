"""The list of layers of a run: row n of a reading belongs to layer n. The list is reported whenever it changes."""

from __future__ import annotations

import time

import msgspec
from torch import nn

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.instrument_sets import InstrumentSets
from tui_descent.instruments.net_structure import NetStructure, structure
from tui_descent.instruments.not_measured import count_numbers, identity
from tui_descent.protocol.events import Layer, LayersChanged
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.nan_guard import NanGuard

# A user loop may change its net at any time. The net is checked for changes this often, and whenever the number of
# parameters in the optimizer changes.
COMPARE_EVERY_S = 1.0
# The rows are enough for this many layers that a user loop adds to its net.
SPARE_ROWS = 16


class LayerList:
    """The layers of one run. `net` is the structure as the instruments see it, None before the first forward pass.

    `structure` counts the changes of `layers`; each reading contains this number. A reading has at most `max_rows`
    rows, enough for all layers that surgery can add. If a user loop adds more layers, the new ones are not shown.
    """

    def __init__(
        self,
        model: nn.Module,
        order: ForwardOrder,
        progress: Progress,
        steering: Steering,
        guard: NanGuard,
        failures: Failures,
    ) -> None:
        self.net: NetStructure | None = None
        self.structure = 0
        self.layers: tuple[Layer, ...] = ()
        self.max_rows = 0
        self._model, self.order, self._guard = model, order, guard
        self._progress, self._steering, self._failures = progress, steering, failures
        self._version = -1
        self._reported: NetStructure | None = None
        self._not_measured: dict[int, str] = {}  # by row: the reasons that were reported
        self._instruments: InstrumentSets | None = None
        self._parameters: list[object] = []  # identifies the parameters that the instruments hold
        self._in_optimizer = 0  # the number of parameters in the optimizer
        self._compared_s = 0.0

    def begin(self) -> None:
        """Create the first list, in the order of the recorded forward pass, or in registration order without one."""
        net = structure(self._model, order=self.order.of(self._model))
        self._not_measured = {row: why for row, w in enumerate(net.layers) if (why := w.layer.not_measured) is not None}
        self._set_net(net)
        self.max_rows = len(net.layers) + self._steering.max_new_layers + SPARE_ROWS
        self._reported = net

    def instruments(self, *, compare: bool = False) -> InstrumentSets:
        """The instruments of the current net. With `compare`, first check whether the user's loop has changed it."""
        changed = compare and self._changed_by_loop()
        if self._instruments is None or changed or self._version != self._steering.version:
            self._version = self._steering.version
            order = self.order.of(self._model)
            self.net = structure(self._model, order=order)
            if len(self.net.layers) > self.max_rows:
                self.net = structure(self._model, order=order, only={layer.name for layer in self.layers})
            optimized = [list(one.parameters()) for one in self._steering.optimizers]
            self._instruments = InstrumentSets(
                self.net, list(self._model.parameters()), self._failures, optimized=optimized
            )
            self._parameters = self._identities()
        return self._instruments

    def _changed_by_loop(self) -> bool:
        in_optimizer = sum(
            len(group["params"]) for one in self._steering.optimizers for group in one.optimizer.param_groups
        )
        now_s = time.monotonic()
        if in_optimizer == self._in_optimizer and now_s - self._compared_s < COMPARE_EVERY_S:
            return False
        self._in_optimizer, self._compared_s = in_optimizer, now_s
        return self._identities() != self._parameters

    def _identities(self) -> list[object]:
        return [identity(p) for p in self._model.parameters()]

    def report(self) -> None:
        """Report the layers if they have changed. Called after surgery, undo and redo, and before each reading."""
        if self.net is None:
            return
        not_measured = self.instruments().not_measured
        net, before = self.net, self.layers
        if net is self._reported and not_measured == self._not_measured:
            return
        self._reported, self._not_measured = net, dict(not_measured)
        self._compared_s = 0.0  # a lazy parameter may have a shape by now, so compare before the next reading
        self._set_net(net)
        if self.layers != before:
            self.structure += 1
            self._progress.emit(
                LayersChanged(
                    **self._progress.place,
                    structure=self.structure,
                    parameters=count_numbers(self._model.parameters()),
                    layers=self.layers,
                )
            )

    def _set_net(self, net: NetStructure) -> None:
        self.net, self._guard.layers = net, net.layers
        self.layers = tuple(
            msgspec.structs.replace(watched.layer, not_measured=self._not_measured.get(row))
            for row, watched in enumerate(net.layers)
        )
