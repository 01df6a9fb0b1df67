"""What a guard on the device knows of each step, written there and sent to the host in pieces, never waited for.

A row a call of `run.step`: the loss, the greatest gradient of the input-most layer, a GradScaler's overflow. Where the
optimizer is fused, a bad row makes its update a no-op by `found_inf`, before anybody on the host has seen it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tui_descent.instruments.deferred import Arrival

# So many rows go to the host together, or fewer when the last ones went so long ago.
ROWS = 64
SEND_AFTER_S = 0.03
# Whose fused kernels leave weights and state alone where `found_inf` is 1.
STOPPABLE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class Row(NamedTuple):
    """One call of `run.step`: `gradient` is the greatest |g|, 0 where none was looked at; `overflow` 1 or 0."""

    loss: float
    gradient: float
    overflow: float


class Verdicts:
    """The rows of one run. All kernels go to the current stream, so a sent row may be written over at once."""

    def __init__(self, device: torch.device, set_off: Callable[[Sequence[Tensor]], Arrival]) -> None:
        self._rows = torch.zeros(ROWS, len(Row._fields), dtype=torch.float64, device=device)
        self._row = self._rows.unbind()
        self._cells = [row.unbind() for row in self._row]
        self._latch = torch.zeros((), device=device)  # 1 from a bad row on, until `release`
        self._one = torch.ones((), device=device)
        self._set_off = set_off
        self._at = 0
        self._sent_s = -torch.inf
        self._looked = False
        self.under_way: deque[Arrival] = deque()  # sent and not read yet
        self._kept: list[tuple[torch.optim.Optimizer, Tensor | None]] = []

    def loss(self, loss: Tensor | float) -> None:
        """The row's loss, a scalar."""
        cell = self._cells[self._at][0]
        if isinstance(loss, Tensor):
            cell.copy_(loss.detach().reshape(()), non_blocking=True)
        else:
            cell.fill_(loss)

    @torch.no_grad()
    def look(self, grad: Tensor | None, optimizer: torch.optim.Optimizer, *, stop: bool) -> None:
        """At the input-most gradient, before the update, and at whether a GradScaler has found an overflow.

        `stop` makes the coming update a no-op on the device if the row is bad, or one was since `release`; then
        `let_go`. What overflowed under a scaler is not bad: its no-op is the scaler's own, and the next step is made.
        """
        _, greatest, overflow = self._cells[self._at]
        if grad is not None:
            grad = grad._values() if grad.is_sparse else grad
            grad = torch.view_as_real(grad) if grad.is_complex() else grad
            # Unlike a sum of finite numbers, the greatest of them is finite.
            if self._looked or grad.device != greatest.device:
                found = torch.linalg.vector_norm(grad, torch.inf, dtype=torch.float64)
                torch.maximum(greatest, found.to(greatest.device, non_blocking=True), out=greatest)
            else:
                torch.linalg.vector_norm(grad, torch.inf, dtype=torch.float64, out=greatest)
        self._looked = True
        scalers = found_inf(optimizer)
        if scalers is not None:
            overflow.copy_(scalers.reshape(()), non_blocking=True)
        if stop:
            self._kept.append((optimizer, scalers))
            optimizer.found_inf = self._judged(scalers)  # type: ignore[attr-defined]

    def _judged(self, scalers: Tensor | None) -> Tensor:
        """1 where the coming update is to do nothing."""
        row = self._row[self._at]
        if scalers is None:
            # A GradScaler's own kernel: sets the latch where a number of the row is not finite, times 1 otherwise.
            torch._amp_foreach_non_finite_check_and_unscale_([row], self._latch, self._one)
            return self._latch
        bad = row.mul(0).sum()  # 0, or NaN where a number of the row is not finite; NaN counts as true
        self._latch.logical_or_(torch.where(row[2] > 0, 0.0, bad))
        return torch.maximum(self._latch, scalers.to(self._latch.device))

    def let_go(self) -> None:
        """After the update, or when it raised: the optimizer's `found_inf` as it was."""
        while self._kept:
            optimizer, before = self._kept.pop()
            if before is not None:
                optimizer.found_inf = before  # type: ignore[attr-defined]
            else:
                vars(optimizer).pop("found_inf", None)

    def release(self) -> None:
        """Updates are made again."""
        self._latch.zero_()

    def close_row(self, now_s: float) -> None:
        """The row is written; send what there is where it is time."""
        self._looked = False
        self._at += 1
        if self._at == ROWS or now_s - self._sent_s >= SEND_AFTER_S:
            self._sent_s = now_s
            self.send()

    def send(self) -> None:
        """Send the rows that are written and not sent yet."""
        if self._at == 0:
            return
        # What is on the host comes in a copy, made before the rows are written over.
        self.under_way.append(self._set_off([self._rows[: self._at].reshape(-1)]))
        begun = self._row[self._at].clone() if self._at < ROWS else None
        self._rows.zero_()
        if begun is not None:
            self._row[0].copy_(begun)
        self._at = 0

    def arrived(self, *, wait: bool = False) -> list[Row]:
        """The rows that have come since the last call, in order; `wait` for one piece of them where there is any."""
        found: list[Row] = []
        while self.under_way and (wait or self.under_way[0].here):
            numbers = iter(self.under_way.popleft().values())  # synchronises where it waits
            found += [Row(*row) for row in zip(numbers, numbers, numbers, strict=True)]
            wait = False
        return found


def found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What a GradScaler has told a fused optimizer: above 0 where gradients overflowed, and its step does nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found if isinstance(found, Tensor) else None


def stoppable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `found_inf` makes its update a no-op: torch's own fused kernels."""
    return isinstance(optimizer, STOPPABLE) and all(group.get("fused") for group in optimizer.param_groups)


def begins_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the coming update is a group's first with momentum: a no-op would leave its buffers uninitialised."""
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    groups = (group["params"] for group in optimizer.param_groups if group["momentum"])
    # torch's fused kernel takes a group whose buffers are all there or all missing.
    firsts = (next((p for p in parameters if p.grad is not None), None) for parameters in groups)
    return any(p is not None and optimizer.state.get(p, {}).get("momentum_buffer") is None for p in firsts)
