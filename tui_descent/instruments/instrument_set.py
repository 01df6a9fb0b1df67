"""All instruments of a net. Chooses which of them measure a step, and combines their results into one row per layer.

Call `attach` before the forward pass, `before_update` in the optimizer's pre-hook and `after_update` in its post-hook.
A cosine needs the gradient of the previous step: call `remember` in the pre-hook of that step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from tui_descent.instruments import activations, block_boundaries, chain_rule_ledger
from tui_descent.instruments.activations import ActivationReading, Activations
from tui_descent.instruments.block_boundaries import BlockBoundaries
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger, is_block
from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.net_structure import NetStructure
from tui_descent.instruments.norms import Norms, NormsReading
from tui_descent.protocol.events import LayerStatus, LedgerEntry
from tui_descent.protocol.readings import pack_rows

T = TypeVar("T")
# The names of the instruments, used in the message that an instrument has been switched off.
NORMS, FACTORS, ACTIVATIONS, LEDGER = "the norms", block_boundaries.PART, activations.PART, chain_rule_ledger.PART


@dataclass(frozen=True, slots=True)
class Sample:
    """The readings of one step: numbers of the whole net, one row per layer (see `pack_rows`), and the ledger if it was
    due.

    Gradients are those that the optimizer received, after clipping. `grad_norm_preclip` is their global norm before
    clipping, None if clipping is off.
    """

    global_grad_norm: float
    global_cosine: float | None
    rows: list[tuple[float, ...]]
    ledger: list[LedgerEntry] | None
    grad_norm_preclip: float | None = None


class InstrumentSet:
    """The instruments of one net. When the net's structure changes, a new set is needed.

    An instrument that raises is added to `failures` and no longer used.
    """

    def __init__(self, net: NetStructure, parameters: Sequence[nn.Parameter], failures: Failures | None = None) -> None:
        self._net, self._failures = net, Failures() if failures is None else failures
        self._norms = Norms(net.layers, parameters, self._failures)
        self._boundaries = BlockBoundaries(net.units, self._failures)
        self._activations = Activations(net.activations, net.layers, self._failures)
        blocks = [(u.name, u.module) for u in net.units if is_block(u.module)]
        self._ledger, self._has_blocks = ChainRuleLedger(blocks, self._failures), bool(blocks)
        self._entries: Deferred[list[LedgerEntry]] = NOTHING
        self._entries_due = False  # whether the ledger has to be computed before the next update
        self._signals = self._slow = False  # whether this tier is measured, in addition to norms
        self._preclip: Tensor | None = None

    @property
    def not_measured(self) -> dict[int, str]:
        """Why layers are not measured, by row number."""
        return self._norms.not_measured

    def attach(self, *, signals: bool = True, slow: bool = False) -> None:
        """Measure the next pass. `signals` adds boundaries and cosines, `slow` adds activations and the ledger."""
        self._signals, self._slow = signals, slow
        self._entries, self._entries_due = NOTHING, slow
        if signals:
            self._run(FACTORS, self._boundaries.attach)
        if slow:
            self._run(ACTIVATIONS, self._activations.attach)
            self._run(LEDGER, self._ledger.attach)

    def detach(self) -> None:
        """Remove the hooks. What they have measured is kept for `before_update` and `after_update`."""
        with self._failures.guard(FACTORS):
            self._boundaries.detach()
        with self._failures.guard(ACTIVATIONS):
            self._activations.detach()
        with self._failures.guard(LEDGER):
            self._ledger.detach()

    def remember(self, step: int = -1) -> None:
        """Keep the gradients of `step` for the cosine of the next step."""
        self._run(NORMS, lambda: self._norms.remember(step))

    def forget(self) -> None:
        """Drop the gradients that were kept for the next cosine."""
        self._norms.forget()

    def copy_weights(self, *, partial: bool = False) -> None:
        """Copy the weights now. Afterwards call `before_update` with `copy_weights=False`."""
        self._run(NORMS, lambda: self._norms.copy_weights(partial=partial))

    def before_update(
        self,
        preclip: Tensor | None = None,
        *,
        grad_scale: Tensor | None = None,
        step: int = 0,
        partial: bool = False,
        copy_weights: bool = True,
    ) -> None:
        """Measure the gradients of update `step`, after clipping. If it is called again before `after_update`, the new
        gradients replace the old ones. With `copy_weights=False`, the copy of the weights from before the first update
        is kept.

        `preclip` is their global norm before clipping, and `grad_scale` the factor by which a GradScaler has multiplied
        them; both are scalar tensors. With `partial`, only a third of the weights is measured if there are many layers.
        """
        self._preclip = preclip
        if self._signals or self._slow:
            self.detach()
        if self._entries_due:
            # Computed now, since the ledger needs the weights as they were in the backward pass.
            self._entries, self._entries_due = self._deferred(LEDGER, self._ledger.entries, NOTHING), False
        self._run(
            NORMS,
            lambda: self._norms.before_update(
                grad_scale, cosines=self._signals, step=step, partial=partial, copy_weights=copy_weights
            ),
        )

    def after_update(self) -> Deferred[Sample | None]:
        """Measure the update, and return all readings of the step; None if the norms have been switched off."""
        norms, entries = self._run(NORMS, self._norms.after_update), self._entries
        if norms is None:
            return Deferred((), lambda _: None)
        if not (self._signals or self._slow) and self._preclip is None:
            return self._guarded(norms.columns, lambda values: self._sample(0, norms.read(values), [], [], {}, None))
        factors = self._deferred(FACTORS, self._boundaries.factors, NOTHING) if self._signals else NOTHING
        no_activations: Deferred[dict[int, ActivationReading]] = Deferred((), lambda _: {})
        activations = no_activations
        if self._slow:
            activations = self._deferred(ACTIVATIONS, self._activations.read, no_activations)
        preclip = () if self._preclip is None else (self._preclip.reshape(1),)
        clipped = Deferred(preclip, lambda values: values[0] if preclip else None)
        parts = combine((norms, entries, factors, activations, clipped))
        tiers = 2 if self._slow else 1 if self._signals else 0
        return self._guarded(parts.columns, lambda values: self._sample(tiers, *parts.read(values)))

    def _run(self, part: str, call: Callable[[], T]) -> T | None:
        """The result of `call`; None if the part is switched off. If the call raises, the part is switched off now."""
        if part not in self._failures:
            with self._failures.guard(part):
                return call()
        return None

    def _deferred(self, part: str, measure: Callable[[], Deferred[T]], otherwise: Deferred[T]) -> Deferred[T]:
        """What `measure` returns; `otherwise` if it raises, now or later when the numbers are read."""
        measured = self._run(part, measure)
        if measured is None:
            return otherwise

        def read(values: Sequence[float]) -> T:
            result = self._run(part, lambda: measured.read(values))
            return otherwise.read(()) if result is None else result

        return Deferred(measured.columns, read)

    def _guarded(self, columns: Sequence[Tensor], read: Callable[[Sequence[float]], Sample]) -> Deferred[Sample | None]:
        return Deferred(columns, lambda values: self._run(NORMS, lambda: read(values)))

    def _sample(
        self,
        tiers: int,
        norms: NormsReading,
        entries: list[LedgerEntry],
        unit_factors: list[float | None],
        activations: dict[int, ActivationReading],
        preclip: float | None,
    ) -> Sample:
        *norm_columns, ages = norms.layers
        columns: list[Sequence[float | None]] = norm_columns
        if tiers:
            factors = dict(zip((u.row for u in self._net.units), unit_factors, strict=True)) if unit_factors else {}
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
        # An empty ledger means that the net has no blocks. None means that no ledger was due or no pass was measured.
        ledger = entries if entries or (tiers == 2 and not self._has_blocks) else None
        return Sample(global_norm, norms.global_cosine, rows, ledger, preclip)

    def _statuses(self, grad_norms: Sequence[float | None]) -> Sequence[LayerStatus]:
        not_measured = self.not_measured
        return [
            "not measured"
            if row in not_measured
            else "used"
            if norm is not None
            else "unused"
            if watched.weight.requires_grad
            else "frozen"
            for row, (norm, watched) in enumerate(zip(grad_norms, self._net.layers, strict=True))
        ]


NOTHING: Deferred[Any] = Deferred((), lambda _: [])
