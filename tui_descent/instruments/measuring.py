"""One sample of one step: which instruments listen when, and the rows they make together.

Before the forward pass: `attach`. In the optimizer's pre-hook: `before_update`; in its post-hook: `after_update`.
A step that is to give a cosine needs its predecessor's gradient: `remember` in the predecessor's pre-hook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tui_descent.instruments.activations import ActivationReading, Activations
from tui_descent.instruments.boundaries import Boundaries
from tui_descent.instruments.ledger import Ledger
from tui_descent.instruments.norms import Norms
from tui_descent.instruments.structure import Structure
from tui_descent.protocol.events import LayerStatus, LedgerEntry
from tui_descent.protocol.readings import pack_row

NOTHING = ActivationReading(math.nan, math.nan, None, None)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sampled step showed: a row a layer for the ring, the whole net's numbers, the ledger if it was due."""

    global_grad_norm: float
    global_cosine: float | None
    rows: list[list[float]]
    ledger: list[LedgerEntry]


class Measuring:
    """The instruments of one net; made anew when surgery changes its structure."""

    def __init__(self, net: Structure, parameters: Sequence[nn.Parameter]) -> None:
        self._net = net
        self._parameters = list(parameters)
        self._norms = Norms(net.layers, self._parameters)
        self._boundaries = Boundaries(net.units)
        self._activations = Activations(net.activations, net.layers)
        blocks = [(u.name, u.module) for u in net.units if hasattr(u.module, "skip") and hasattr(u.module, "linear")]
        self._ledger = Ledger(blocks)
        self._previous: list[Tensor | None] | None = None
        self._cosines: list[float | None] = []
        self._global_cosine: float | None = None
        self._entries: list[LedgerEntry] = []
        self._slow = False

    def attach(self, *, slow: bool) -> None:
        """Listen to the coming forward pass; `slow` adds activations and the ledger."""
        self._slow = slow
        self._boundaries.attach()
        if slow:
            self._activations.attach()
            self._ledger.attach()

    def detach(self) -> None:
        """Listen no more."""
        self._boundaries.detach()
        self._activations.detach()
        self._ledger.detach()

    @torch.no_grad()
    def remember(self) -> None:
        """Keep this step's gradients for the next step's cosine."""
        self._previous = [None if p.grad is None else p.grad.clone() for p in self._parameters]

    @torch.no_grad()
    def before_update(self) -> None:
        """The gradients are there, the update is not made."""
        self.detach()
        # With the weights the gradients came through, so now.
        self._entries = self._ledger.entries() if self._slow else []
        self._norms.before_update()

    def after_update(self) -> Sample:
        """The update is made."""
        grad_norms, layers = self._norms.after_update()
        self._take_cosines(grad_norms)
        factors = dict(zip((u.row for u in self._net.units), self._boundaries.factors(), strict=True))
        activations = self._activations.read() if self._slow else {}
        rows = []
        for n, layer in enumerate(layers):
            a = activations.get(n, NOTHING)
            seen = n in activations
            rows.append(
                pack_row(
                    [
                        layer.grad_norm,
                        layer.grad_rms,
                        layer.weight_norm,
                        layer.update_norm,
                        layer.update_ratio,
                        factors.get(n),
                        self._cosines[self._norms.place_of(n)] if self._cosines else None,
                        a.dead_fraction,
                        a.saturated_fraction,
                        a.mean if seen else None,
                        a.std if seen else None,
                    ],
                    status=self._status(n, layer.grad_norm),
                )
            )
        global_norm = math.hypot(*(norm for norm in grad_norms if norm is not None))
        return Sample(global_norm, self._global_cosine, rows, self._entries)

    def _status(self, row: int, grad_norm: float | None) -> LayerStatus:
        if grad_norm is not None:
            return "used"
        return "unused" if self._net.layers[row].weight.requires_grad else "frozen"

    @torch.no_grad()
    def _take_cosines(self, grad_norms: Sequence[float | None]) -> None:
        """cos(g_t, g_{t−1}) by parameter and for all together; nothing where either is missing or zero."""
        previous, self._previous = self._previous, None
        self._cosines, self._global_cosine = [], None
        if previous is None:
            return
        pairs = [
            (n, p.grad, old)
            for n, (p, old) in enumerate(zip(self._parameters, previous, strict=True))
            if p.grad is not None and old is not None and p.grad.shape == old.shape
        ]
        if not pairs:
            return
        scalars = [s for _, new, old in pairs for s in _dot_and_square(new, old)]
        values = torch.stack(scalars).tolist()
        self._cosines = [None] * len(self._parameters)
        dots, news, olds = 0.0, 0.0, 0.0
        for k, (n, _, _) in enumerate(pairs):
            dot, old_square = values[2 * k], values[2 * k + 1]
            new_square = (grad_norms[n] or 0.0) ** 2
            if new_square and old_square:
                self._cosines[n] = dot / math.sqrt(new_square) / math.sqrt(old_square)
            dots, news, olds = dots + dot, news + new_square, olds + old_square
        if news and olds:
            self._global_cosine = dots / math.sqrt(news) / math.sqrt(olds)


def _dot_and_square(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """In float64: products of gradients of 1e-25 are 0 in float32."""
    a, b = new.flatten(), old.flatten()
    if a.device.type != "mps":
        a, b = a.double(), b.double()
    return torch.dot(a, b), torch.dot(b, b)
