"""One sample of one step: which instruments listen when, and the rows they make together.

Before the forward pass: `attach`. In the optimizer's pre-hook: `before_update`; in its post-hook: `after_update`.
A step that is to give a cosine needs its predecessor's gradient: `remember` in the predecessor's pre-hook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tui_descent.instruments.activations import ActivationReading, Activations
from tui_descent.instruments.block_boundaries import BlockBoundaries
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.net_structure import NetStructure
from tui_descent.instruments.norms import Norms, NormsReading
from tui_descent.protocol.events import LayerStatus, LedgerEntry
from tui_descent.protocol.readings import pack_rows


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sampled step showed: a row a layer for the ring, the whole net's numbers, the ledger or None if not due.

    Gradients are those the optimizer received; `grad_norm_preclip` is their global norm before our clip, None without.
    """

    global_grad_norm: float
    global_cosine: float | None
    rows: list[tuple[float, ...]]
    ledger: list[LedgerEntry] | None
    grad_norm_preclip: float | None = None


class InstrumentSet:
    """The instruments of one net; made anew when surgery changes its structure."""

    def __init__(self, net: NetStructure, parameters: Sequence[nn.Parameter]) -> None:
        self._net = net
        self._norms = Norms(net.layers, parameters)
        self._boundaries = BlockBoundaries(net.units)
        self._activations = Activations(net.activations, net.layers)
        blocks = [(u.name, u.module) for u in net.units if hasattr(u.module, "skip") and hasattr(u.module, "linear")]
        self._ledger, self._blockless = ChainRuleLedger(blocks), not blocks
        self._entries: Deferred[list[LedgerEntry]] = NOTHING
        self._signals = self._slow = False
        self._preclip: Tensor | None = None

    def attach(self, *, signals: bool = True, slow: bool = False) -> None:
        """Listen to the coming pass: `signals` adds boundaries and cosines to the norms, `slow` activations, ledger."""
        self._signals, self._slow = signals, slow
        if signals:
            self._boundaries.attach()
        if slow:
            self._activations.attach()
            self._ledger.attach()

    def detach(self) -> None:
        """Listen no more."""
        self._boundaries.detach()
        self._activations.detach()
        self._ledger.detach()

    def remember(self, step: int = -1) -> None:
        """Keep this step's gradients for the next step's cosine; its number, by default that of the one before 0."""
        self._norms.remember(step)

    def before_update(
        self,
        preclip: Tensor | None = None,
        *,
        grad_scale: Tensor | None = None,
        step: int = 0,
        partial: bool = False,
    ) -> None:
        """The gradients are there, clipped where they are to be, and the update is not made.

        `preclip` is the global norm before clipping, a scalar; `grad_scale` what a GradScaler still multiplies
        gradients by, which norms are divided by. `partial`: a third of many layers' weights will do.
        """
        self._preclip = preclip
        if self._signals or self._slow:
            self.detach()
        # With the weights the gradients came through, so now.
        self._entries = self._ledger.entries() if self._slow else NOTHING
        self._norms.before_update(grad_scale, cosines=self._signals, step=step, partial=partial)

    def after_update(self) -> Deferred[Sample]:
        """The update is made."""
        norms, entries = self._norms.after_update(), self._entries
        if not (self._signals or self._slow) and self._preclip is None:
            return Deferred(norms.columns, lambda values: self._sample(0, norms.read(values), [], [], {}, None))
        factors = self._boundaries.factors() if self._signals else NOTHING
        activations = self._activations.read() if self._slow else Deferred((), lambda _: {})
        preclip = () if self._preclip is None else (self._preclip.reshape(1),)
        clipped = Deferred(preclip, lambda values: values[0] if preclip else None)
        parts = combine((norms, entries, factors, activations, clipped))
        tiers = 2 if self._slow else 1 if self._signals else 0
        return Deferred(parts.columns, lambda values: self._sample(tiers, *parts.read(values)))

    def _sample(
        self,
        tiers: int,
        norms: NormsReading,
        entries: list[LedgerEntry],
        by_unit: list[float | None],
        activations: dict[int, ActivationReading],
        preclip: float | None,
    ) -> Sample:
        *known, ages = norms.layers
        columns: list[Sequence[float | None]] = known
        if tiers:
            factors = dict(zip((u.row for u in self._net.units), by_unit, strict=True)) if by_unit else {}
            columns.append([factors.get(n) for n in range(len(self._net.layers))])
            columns.append([norms.cosines.get(n) for n in self._norms.weight_indices])
        if activations:
            read = [activations.get(n) for n in range(len(self._net.layers))]
            columns += [
                [None if a is None else a.dead_fraction for a in read],
                [None if a is None else a.saturated_fraction for a in read],
                [None if a is None else a.mean for a in read],
                [None if a is None else a.std for a in read],
            ]
        rows = pack_rows(columns, statuses=self._statuses(norms.layers.grad_norm), ages=ages)
        global_norm = math.hypot(*(norm for norm in norms.grad_norms if norm is not None))
        # An empty one says that there can be none; a pass that was not listened to says nothing.
        ledger = entries if entries or (tiers == 2 and self._blockless) else None
        return Sample(global_norm, norms.global_cosine, rows, ledger, preclip)

    def _statuses(self, grad_norms: Sequence[float | None]) -> Sequence[LayerStatus]:
        used: list[LayerStatus] = ["used"] * len(grad_norms)
        if None in grad_norms:
            for n, (norm, watched) in enumerate(zip(grad_norms, self._net.layers, strict=True)):
                if norm is None:
                    used[n] = "unused" if watched.weight.requires_grad else "frozen"
        return used


NOTHING: Deferred[Any] = Deferred((), lambda _: [])
