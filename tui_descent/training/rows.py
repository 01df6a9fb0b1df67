"""The layers that a run's readings have rows of: those of the net as it stands, told anew when they change."""

from __future__ import annotations

import time

from torch import nn

from tui_descent.instruments.measuring import Measuring
from tui_descent.instruments.order import ForwardOrder
from tui_descent.instruments.structure import Structure, structure
from tui_descent.protocol.events import Layer, LayersChanged
from tui_descent.training.control import Control
from tui_descent.training.guard import Guard

# A net that its own loop has changed is looked for this often, or when its optimizer has more parameters or fewer.
LOOK_EVERY_S = 1.0
# Rows that such a change may bring.
SPARE = 16


class Rows:
    """Of one run, whose net is `net` as its instruments see it, None before its layers are known; `order` is theirs.

    `structure` numbers the lists of `layers`, as readings do. A reading has room for `room` of them: all that a surgery
    of ours adds finds room; a net that its own loop has made larger still shows only layers that were told before.
    """

    def __init__(self, model: nn.Module, order: ForwardOrder, control: Control, guard: Guard) -> None:
        self.net: Structure | None = None
        self.structure = 0
        self.layers: tuple[Layer, ...] = ()
        self.room = 0
        self._model, self._order, self._control, self._guard = model, order, control, guard
        self._version = -1
        self._told: Structure | None = None
        self._measuring: Measuring | None = None
        self._parameters: tuple[int, ...] = ()  # by identity: the instruments hold them
        self._grouped = 0  # the optimizer's
        self._looked_s = 0.0
        control.tell_layers = self.tell

    def begin(self) -> None:
        """The run's first layers, in the order of a forward pass if one was heard, else as they are registered."""
        net = structure(self._model, order=self._order.now(self._model))
        self._take(net)
        self.room = len(net.layers) + self._control.steering.norms_to_come + SPARE
        self._told = net

    def instruments(self, *, look: bool = False) -> Measuring:
        """Those of the net as it stands; `look` whether the loop has changed it."""
        others = look and self._others()
        if self._measuring is None or others or self._version != self._control.steering.version:
            self._version = self._control.steering.version
            order = self._order.now(self._model)
            self.net = structure(self._model, order=order)
            if len(self.net.layers) > self.room:
                self.net = structure(self._model, order=order, only={layer.name for layer in self.layers})
            self._measuring = Measuring(self.net, list(self._model.parameters()))
            self._parameters = tuple(map(id, self._model.parameters()))
        return self._measuring

    def _others(self) -> bool:
        grouped = sum(len(group["params"]) for group in self._control.steering.ground.optimizer.param_groups)
        now_s = time.monotonic()
        if grouped == self._grouped and now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._grouped, self._looked_s = grouped, now_s
        return tuple(map(id, self._model.parameters())) != self._parameters

    def tell(self) -> None:
        """Which layers there are, if they are others: after a surgery, an undo or a redo, and before a reading."""
        if self.net is None:
            return
        self.instruments()
        net, before = self.net, self.layers
        if net is self._told:
            return
        self._told = net
        self._take(net)
        if self.layers != before:
            self.structure += 1
            self._control.tell(
                LayersChanged(
                    segment=self._control.segment,
                    step=self._control.step,
                    structure=self.structure,
                    parameters=sum(p.numel() for p in self._model.parameters()),
                    layers=self.layers,
                )
            )

    def _take(self, net: Structure) -> None:
        self.net, self._guard.layers = net, net.layers
        self.layers = tuple(watched.layer for watched in net.layers)
