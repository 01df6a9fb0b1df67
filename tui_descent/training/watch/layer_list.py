"""The layers that a run's readings have rows of, reported again when they change."""

from __future__ import annotations

import time

from torch import nn

from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.instrument_set import InstrumentSet
from tui_descent.instruments.net_structure import NetStructure, structure
from tui_descent.protocol.events import Layer, LayersChanged
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.nan_guard import NanGuard

# A net that its own loop has changed is looked for this often, and when its optimizer's parameters change in number.
LOOK_EVERY_S = 1.0
# Rows that such a change may add.
SPARE = 16


class LayerList:
    """Of one run. `net` is its structure as the instruments see it, None before the first forward pass.

    `structure` numbers the lists of `layers`; each reading carries that number. A reading has room for `room` rows: all
    layers that our surgery can add. Of a net that its own loop has enlarged beyond that, only known layers show.
    """

    def __init__(
        self, model: nn.Module, order: ForwardOrder, progress: Progress, steering: Steering, guard: NanGuard
    ) -> None:
        self.net: NetStructure | None = None
        self.structure = 0
        self.layers: tuple[Layer, ...] = ()
        self.room = 0
        self._model, self._order, self._guard = model, order, guard
        self._progress, self._steering = progress, steering
        self._version = -1
        self._reported: NetStructure | None = None
        self._measuring: InstrumentSet | None = None
        self._parameters: tuple[int, ...] = ()  # by identity: the instruments hold them
        self._grouped = 0  # the optimizer's
        self._looked_s = 0.0

    def begin(self) -> None:
        """The run's first layers, in the order of the first forward pass if it was recorded, else as registered."""
        net = structure(self._model, order=self._order.now(self._model))
        self._take(net)
        self.room = len(net.layers) + self._steering.max_new_layers + SPARE
        self._reported = net

    def instruments(self, *, look: bool = False) -> InstrumentSet:
        """The instruments of the net as it is now; `look` whether the loop itself has changed it."""
        changed = look and self._changed_by_loop()
        if self._measuring is None or changed or self._version != self._steering.version:
            self._version = self._steering.version
            order = self._order.now(self._model)
            self.net = structure(self._model, order=order)
            if len(self.net.layers) > self.room:
                self.net = structure(self._model, order=order, only={layer.name for layer in self.layers})
            self._measuring = InstrumentSet(self.net, list(self._model.parameters()))
            self._parameters = tuple(map(id, self._model.parameters()))
        return self._measuring

    def _changed_by_loop(self) -> bool:
        grouped = sum(len(group["params"]) for group in self._steering.context.optimizer.param_groups)
        now_s = time.monotonic()
        if grouped == self._grouped and now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._grouped, self._looked_s = grouped, now_s
        return tuple(map(id, self._model.parameters())) != self._parameters

    def report(self) -> None:
        """Report the layers if they have changed: after surgery, an undo or a redo, and before a reading."""
        if self.net is None:
            return
        self.instruments()
        net, before = self.net, self.layers
        if net is self._reported:
            return
        self._reported = net
        self._take(net)
        if self.layers != before:
            self.structure += 1
            self._progress.emit(
                LayersChanged(
                    **self._progress.place,
                    structure=self.structure,
                    parameters=sum(p.numel() for p in self._model.parameters()),
                    layers=self.layers,
                )
            )

    def _take(self, net: NetStructure) -> None:
        self.net, self._guard.layers = net, net.layers
        self.layers = tuple(watched.layer for watched in net.layers)
