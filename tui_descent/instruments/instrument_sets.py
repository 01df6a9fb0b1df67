"""The instruments of a net that several optimizers train, such as the generator and discriminator of a GAN.

Each optimizer has an `InstrumentSet` for the layers that it updates, because a layer has to be measured when its own
optimizer makes an update. The results are combined into one reading with a row for every layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.instrument_set import InstrumentSet, Sample
from tui_descent.instruments.net_structure import NetStructure, Unit
from tui_descent.protocol.readings import pack_rows


class InstrumentSets:
    """One `InstrumentSet` per optimizer; with one optimizer, the only set measures the whole net.

    `optimized` has the parameters of each optimizer. A layer belongs to the optimizer that updates its weight, or to
    the first one if none does. `n` is the index of an optimizer.
    """

    def __init__(
        self,
        net: NetStructure,
        parameters: Sequence[nn.Parameter],
        failures: Failures | None = None,
        optimized: Sequence[Collection[nn.Parameter]] = (),
    ) -> None:
        self._net, self._rows = net, [list(range(len(net.layers)))]
        if len(optimized) <= 1:
            self._sets = [InstrumentSet(net, parameters, failures)]
            return
        owner = {id(p): n for n, those in reversed(list(enumerate(optimized))) for p in those}
        # The parameters of one layer are measured together, even if several optimizers share them.
        owners = [owner.get(id(watched.weight), 0) for watched in net.layers]
        for watched, n in zip(net.layers, owners, strict=True):
            owner |= dict.fromkeys((id(p) for p in watched.module.parameters(recurse=False)), n)
        self._rows = [[row for row, o in enumerate(owners) if o == n] for n in range(len(optimized))]
        self._sets = [
            InstrumentSet(_part(net, rows), [p for p in parameters if owner.get(id(p), 0) == n], failures)
            for n, rows in enumerate(self._rows)
        ]

    @property
    def not_measured(self) -> dict[int, str]:
        """Why layers are not measured, by row number."""
        return {
            rows[n]: reason
            for one, rows in zip(self._sets, self._rows, strict=True)
            for n, reason in one.not_measured.items()
        }

    def attach(self, *, signals: bool = True, slow: bool = False) -> None:
        """Measure the next pass; see `InstrumentSet.attach`."""
        for one in self._sets:
            one.attach(signals=signals, slow=slow)

    def detach(self) -> None:
        """Remove the hooks from the modules."""
        for one in self._sets:
            one.detach()

    def remember(self, n: int, step: int) -> None:
        """Keep the gradients of `step` for the cosine of the next step."""
        self._sets[n].remember(step)

    def forget(self, n: int) -> None:
        """Drop the gradients that were kept."""
        self._sets[n].forget()

    def copy_weights(self, n: int, *, partial: bool) -> None:
        """Copy the weights now; see `InstrumentSet.copy_weights`."""
        self._sets[n].copy_weights(partial=partial)

    def before_update(
        self,
        n: int,
        preclip: Tensor | None,
        *,
        grad_scale: Tensor | None,
        step: int,
        partial: bool,
        copy_weights: bool = True,
    ) -> None:
        """Measure the gradients before an update; see `InstrumentSet.before_update`."""
        self._sets[n].before_update(
            preclip, grad_scale=grad_scale, step=step, partial=partial, copy_weights=copy_weights
        )

    def after_update(self, measured: Collection[int] = (0,)) -> Deferred[Sample | None]:
        """Measure the updates of the optimizers `measured`, and return all readings of the step.

        The other optimizers have made no update, so the rows of their layers have no values. None if the norms are
        switched off.
        """
        if len(self._sets) == 1:
            return self._sets[0].after_update()
        indices = [n for n in range(len(self._sets)) if n in measured]
        samples = combine([self._sets[n].after_update() for n in indices])
        return Deferred(
            samples.columns, lambda values: self._merge(dict(zip(indices, samples.read(values), strict=True)))
        )

    def _merge(self, measured: dict[int, Sample | None]) -> Sample | None:
        samples = {n: sample for n, sample in measured.items() if sample is not None}
        if not samples:
            return None
        trains = [watched.weight.requires_grad for watched in self._net.layers]
        rows = pack_rows([], statuses=["used" if t else "frozen" for t in trains])
        for n, sample in samples.items():
            for row, values in zip(self._rows[n], sample.rows, strict=True):
                rows[row] = values
        clips = any(sample.grad_norm_preclip is not None for sample in samples.values())
        unclipped = (
            s.global_grad_norm if s.grad_norm_preclip is None else s.grad_norm_preclip for s in samples.values()
        )
        return Sample(
            global_grad_norm=math.hypot(*(sample.global_grad_norm for sample in samples.values())),
            global_cosine=None,
            rows=rows,
            ledger=next((s.ledger for s in samples.values() if s.ledger), None),
            grad_norm_preclip=math.hypot(*unclipped) if clips else None,
        )


def _part(net: NetStructure, rows: Sequence[int]) -> NetStructure:
    """The layers in these rows as a net of their own, with the units and activations that belong to them. The factor of
    a unit needs the gradient at the input of the next unit, so there are no units if units of other optimizers lie
    between.
    """
    index = {row: n for n, row in enumerate(rows)}
    places = [place for place, unit in enumerate(net.units) if unit.row in index]
    together = all(after == before + 1 for before, after in pairwise(places))
    units = [net.units[place] for place in places] if together else []
    return NetStructure(
        layers=tuple(net.layers[row] for row in rows),
        units=tuple(Unit(unit.name, unit.module, index[unit.row]) for unit in units),
        activations=tuple(replace(a, row=index[a.row]) for a in net.activations if a.row in index),
    )
