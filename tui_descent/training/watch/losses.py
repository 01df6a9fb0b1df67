"""The numbers of each step: its loss, and on a device its gradient check.

On a CPU a loss is read as it is handed over. On CUDA nothing waits: losses and checks are written to a buffer on the
device, sent to the host a few steps at a time, and read when they have arrived.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tui_descent.instruments import deferred
from tui_descent.instruments.deferred import HostCopy

# So many rows are sent to the host together, or fewer when the last ones were sent so long ago.
ROWS = 64
SEND_AFTER_S = 0.03
# Their fused kernels leave weights and state alone where `found_inf` is 1.
STOPPABLE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class Row(NamedTuple):
    """One call of `run.step`: `gradient` is the greatest |g|, 0 where none was looked at; `overflow` 1 or 0."""

    loss: float
    gradient: float
    overflow: float


class HostLosses:
    """Losses that are read at once; `rows` holds those that nobody has taken yet."""

    deferred = False

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()

    def check(self, loss: Tensor | float) -> float:
        """The value of a loss before its update."""
        return number(loss)

    def look(self, grad: Tensor | None, optimizer: torch.optim.Optimizer, *, stop: bool) -> bool:
        """False: the guard reads the gradient itself."""
        return False

    def let_go(self) -> None:
        """Nothing is held."""

    def write(self, loss: Tensor | float, time_s: float) -> bool:
        """One row. False: no device has checked it before the update."""
        self.rows.append(Row(number(loss), 0.0, 0.0))
        return False

    def collect(self, *, wait: bool = False) -> None:
        """All rows are here."""

    def release(self) -> None:
        """No update was stopped."""


class DeviceLosses:
    """Losses and gradient checks on a device that is never waited for.

    Where the optimizer is fused, a bad row turns its update into a no-op by `found_inf`, before the host has seen it.
    All kernels go to the current stream, so a row that was sent may be overwritten at once.
    """

    deferred = True

    def __init__(self, device: torch.device) -> None:
        self.rows: deque[Row] = deque()
        self._buffer = torch.zeros(ROWS, len(Row._fields), dtype=torch.float64, device=device)
        self._row = self._buffer.unbind()
        self._cells = [row.unbind() for row in self._row]
        self._latch = torch.zeros((), device=device)  # 1 from a bad row on, until `release`
        self._one = torch.ones((), device=device)
        self._at = 0
        self._sent_s = -torch.inf
        self._checked = self._looked = False  # the row under way: its loss is written, its gradient was looked at
        self._under_way: deque[HostCopy] = deque()  # sent and not read yet
        self._kept: list[tuple[torch.optim.Optimizer, Tensor | None]] = []

    def check(self, loss: Tensor | float) -> float:
        """Write the loss before its update; 0, since its value is known only later."""
        self._checked = True
        self._write_loss(loss)
        return 0.0

    @torch.no_grad()
    def look(self, grad: Tensor | None, optimizer: torch.optim.Optimizer, *, stop: bool) -> bool:
        """Check the input-most gradient before the update, and whether a GradScaler found an overflow.

        `stop` makes the coming update a no-op on the device if the row is bad, or one was since `release`; then
        `let_go`. An overflow under a scaler is not bad: its no-op is the scaler's own, and the next step is made.
        """
        _, greatest, overflow = self._cells[self._at]
        if grad is not None:
            grad = grad._values() if grad.is_sparse else grad
            grad = torch.view_as_real(grad) if grad.is_complex() else grad
            # The greatest of finite numbers is finite; their sum may not be.
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
            optimizer.found_inf = self._skip_update(scalers)  # type: ignore[attr-defined]
        return True

    def _skip_update(self, scalers: Tensor | None) -> Tensor:
        """1 where the coming update is to do nothing."""
        row = self._row[self._at]
        if scalers is None:
            # GradScaler's own kernel: sets the latch where a number of the row is not finite.
            torch._amp_foreach_non_finite_check_and_unscale_([row], self._latch, self._one)
            return self._latch
        bad = row.mul(0).sum()  # 0, or NaN where a number of the row is not finite; NaN counts as true
        self._latch.logical_or_(torch.where(row[2] > 0, 0.0, bad))
        return torch.maximum(self._latch, scalers.to(self._latch.device))

    def let_go(self) -> None:
        """After the update, or when it raised: restore the optimizer's `found_inf`."""
        while self._kept:
            optimizer, before = self._kept.pop()
            if before is not None:
                optimizer.found_inf = before  # type: ignore[attr-defined]
            else:
                vars(optimizer).pop("found_inf", None)

    def write(self, loss: Tensor | float, time_s: float) -> bool:
        """Close the row under way; whether its loss was written before the update."""
        checked, self._checked, self._looked = self._checked, False, False
        if not checked:
            self._write_loss(loss)
        self._at += 1
        if self._at == ROWS or time_s - self._sent_s >= SEND_AFTER_S:
            self._sent_s = time_s
            self._send()
        return checked

    def collect(self, *, wait: bool = False) -> None:
        """Take the rows that have arrived; `wait` for one batch of them, which synchronises."""
        if wait and not self._under_way:
            self._send()
        while self._under_way and (wait or self._under_way[0].ready):
            numbers = iter(self._under_way.popleft().values())
            self.rows.extend(Row(*row) for row in zip(numbers, numbers, numbers, strict=True))
            wait = False

    def release(self) -> None:
        """Updates are made again."""
        self._latch.zero_()

    def _write_loss(self, loss: Tensor | float) -> None:
        cell = self._cells[self._at][0]
        if isinstance(loss, Tensor):
            cell.copy_(loss.detach().reshape(()), non_blocking=True)
        else:
            cell.fill_(loss)

    def _send(self) -> None:
        if self._at == 0:
            return
        # `HostCopy` copies the rows before they are overwritten.
        self._under_way.append(HostCopy([self._buffer[: self._at].reshape(-1)]))
        begun = self._row[self._at].clone() if self._at < ROWS else None
        self._buffer.zero_()
        if begun is not None:
            self._row[0].copy_(begun)
        self._at = 0


def losses_of(model: nn.Module) -> HostLosses | DeviceLosses:
    """By the device of the model's first parameter."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return DeviceLosses(device) if deferred.is_asynchronous(device) else HostLosses()


def number(value: Tensor | float) -> float:
    """A scalar's value; from a GPU this waits for it."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def mean(losses: list[float]) -> float:
    """Also of non-finite losses, and of those whose sum overflows: no reason to raise in the midst of a step."""
    try:
        return math.fsum(losses) / len(losses)
    except (OverflowError, ValueError):
        return sum(losses) / len(losses)


def found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What a GradScaler sets on a fused optimizer: above 0 where gradients overflowed, and its step does nothing."""
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
