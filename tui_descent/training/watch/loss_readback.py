"""Reads the loss of each step, and on CUDA also checks the gradient.

On a CPU a loss is read at once. On CUDA nothing waits for the device: losses and gradient checks are written to a
buffer on the device, copied to the host a few steps at a time, and read when they have arrived.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tui_descent.instruments import deferred
from tui_descent.instruments.deferred import HostCopy

# Rows are sent to the host when there are ROWS of them, or when SEND_AFTER_S have passed since rows were last sent.
ROWS = 64
SEND_AFTER_S = 0.03
# The fused kernels of these classes leave weights and state unchanged where `found_inf` is 1.
STOPPABLE = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class Row(NamedTuple):
    """The numbers of one call of `run.step`.

    `gradient` is the largest |g| in the gradient of the input-most layer, 0 if it was not checked. `overflow` is 1 if a
    GradScaler found an overflow, else 0.
    """

    loss: float
    gradient: float
    overflow: float


class HostLosses:
    """Losses that are read at once. `rows` holds the rows that have not been reported yet."""

    deferred = False

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()

    def check_loss(self, loss: Tensor | float) -> float:
        """The value of a loss, before its update."""
        return number(loss)

    def check_gradient(self, grad: Tensor | None, optimizer: torch.optim.Optimizer, *, stop: bool) -> bool:
        """Does nothing and returns False: the NaN guard checks the gradient instead."""
        return False

    def restore_found_inf(self) -> None:
        """Nothing to do: `found_inf` was not changed."""

    def add_row(self, loss: Tensor | float, time_s: float) -> bool:
        """Add one row. Returns False, since its loss was not checked on a device before the update."""
        self.rows.append(Row(number(loss), 0.0, 0.0))
        return False

    def drop_rows(self) -> None:
        """Drop the rows that were not reported."""
        self.rows.clear()

    def collect(self, *, wait: bool = False) -> None:
        """Nothing to do: all rows are on the host."""

    def allow_updates(self) -> None:
        """Nothing to do: no update was stopped."""


class DeviceLosses:
    """Losses and gradient checks on a device, without waiting for it.

    If a row has a non-finite value and the optimizer is fused, `found_inf` makes the optimizer skip the update before
    the host has read the row. All kernels run on the current stream, so a row that was sent may be overwritten at once.
    """

    deferred = True

    def __init__(self, device: torch.device) -> None:
        self.rows: deque[Row] = deque()
        self._buffer = torch.zeros(ROWS, len(Row._fields), dtype=torch.float64, device=device)
        self._row = self._buffer.unbind()
        self._cells = [row.unbind() for row in self._row]
        self._latch = torch.zeros((), device=device)  # the latch: 1 from the first non-finite row until `allow_updates`
        self._one = torch.ones((), device=device)
        self._at = 0  # the current row
        self._sent_s = -torch.inf
        self._loss_checked = self._gradient_checked = False  # for the current row
        self._in_flight: deque[HostCopy] = deque()  # sent and not read yet
        # Optimizers, each with its own `found_inf`.
        self._replaced: list[tuple[torch.optim.Optimizer, Tensor | None]] = []

    def check_loss(self, loss: Tensor | float) -> float:
        """Write the loss before its update. Returns 0, since the value of the loss is known only later."""
        self._loss_checked = True
        self._write_loss(loss)
        return 0.0

    @torch.no_grad()
    def check_gradient(self, grad: Tensor | None, optimizer: torch.optim.Optimizer, *, stop: bool) -> bool:
        """Before the update, check `grad`, the gradient of the input-most layer, and record whether a GradScaler found
        an overflow.

        With `stop`, the device skips the coming update if this row, or an earlier row since `allow_updates`, has a
        non-finite value. Call `restore_found_inf` after the update. An overflow found by a GradScaler does not count as
        a non-finite value: the scaler skips that one update itself. Returns True.
        """
        _, largest, overflow = self._cells[self._at]
        if grad is not None:
            grad = grad._values() if grad.is_sparse else grad
            grad = torch.view_as_real(grad) if grad.is_complex() else grad
            # The maximum norm cannot overflow; a sum can.
            if self._gradient_checked or grad.device != largest.device:
                found = torch.linalg.vector_norm(grad, torch.inf, dtype=torch.float64)
                torch.maximum(largest, found.to(largest.device, non_blocking=True), out=largest)
            else:
                torch.linalg.vector_norm(grad, torch.inf, dtype=torch.float64, out=largest)
        self._gradient_checked = True
        scalers = found_inf(optimizer)
        if scalers is not None:
            overflow.copy_(scalers.reshape(()), non_blocking=True)
        if stop:
            self._replaced.append((optimizer, scalers))
            optimizer.found_inf = self._skip_update(scalers)  # type: ignore[attr-defined]
        return True

    def _skip_update(self, scalers: Tensor | None) -> Tensor:
        """1 if the device has to skip the coming update, else 0; shape (). `scalers` is a GradScaler's `found_inf`."""
        row = self._row[self._at]
        if scalers is None:
            # GradScaler's own kernel: sets the latch if a value of the row is not finite.
            torch._amp_foreach_non_finite_check_and_unscale_([row], self._latch, self._one)
            return self._latch
        non_finite = row.mul(0).sum()  # 0, or NaN if a value of the row is not finite; NaN counts as true
        self._latch.logical_or_(torch.where(row[2] > 0, 0.0, non_finite))
        return torch.maximum(self._latch, scalers.to(self._latch.device))

    def restore_found_inf(self) -> None:
        """Give the optimizer its own `found_inf` back. Called after an update, also if it raised."""
        while self._replaced:
            optimizer, before = self._replaced.pop()
            if before is not None:
                optimizer.found_inf = before  # type: ignore[attr-defined]
            else:
                vars(optimizer).pop("found_inf", None)

    def add_row(self, loss: Tensor | float, time_s: float) -> bool:
        """Complete the current row. Returns whether its loss was written before the update."""
        checked, self._loss_checked, self._gradient_checked = self._loss_checked, False, False
        if not checked:
            self._write_loss(loss)
        self._at += 1
        if self._at == ROWS or time_s - self._sent_s >= SEND_AFTER_S:
            self._sent_s = time_s
            self._send()
        return checked

    def drop_rows(self) -> None:
        """Drop the rows that were not reported."""
        while self._at or self._in_flight:
            self.collect(wait=True)
        self.rows.clear()

    def collect(self, *, wait: bool = False) -> None:
        """Append to `rows` the rows that have reached the host. With `wait`, wait for the next rows in flight."""
        if wait and not self._in_flight:
            self._send()
        while self._in_flight and (wait or self._in_flight[0].ready):
            numbers = iter(self._in_flight.popleft().values())
            self.rows.extend(Row(*row) for row in zip(numbers, numbers, numbers, strict=True))
            wait = False

    def allow_updates(self) -> None:
        """Stop skipping updates, after a non-finite value was handled."""
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
        self._in_flight.append(HostCopy([self._buffer[: self._at].reshape(-1)]))
        current = self._row[self._at].clone() if self._at < ROWS else None
        self._buffer.zero_()
        if current is not None:
            self._row[0].copy_(current)
        self._at = 0


def losses_of(model: nn.Module) -> HostLosses | DeviceLosses:
    """Create `DeviceLosses` if the model is on a GPU that works asynchronously, else `HostLosses`."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return DeviceLosses(device) if deferred.is_asynchronous(device) else HostLosses()


def number(value: Tensor | float) -> float:
    """The value of a scalar. On a GPU this synchronises."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def readable(loss: object) -> tuple[Tensor | float | None, str]:
    """For a loss that is not a single real number: a number to show, and a description of what was passed. The number
    is the mean of a tensor with several elements, or the real part of a complex number; None if there is no such
    number.
    """
    if not isinstance(loss, Tensor):
        return None, type(loss).__name__
    what = f"a {str(loss.dtype).removeprefix('torch.')} tensor of shape {tuple(loss.shape)}"
    try:
        value = loss.detach()
        value = value.real if value.is_complex() else value
        if not value.numel():
            return None, what
        return (
            value.double().mean() if value.device.type != "mps" else value.float().mean(),
            f"{what}: its mean is shown",
        )
    except Exception:  # noqa: BLE001 - a tensor of another kind
        return None, what


def mean(losses: list[float]) -> float:
    """The mean. It is inf or NaN for non-finite losses and sums that overflow; `math.fsum` would raise there."""
    try:
        return math.fsum(losses) / len(losses)
    except (OverflowError, ValueError):
        return sum(losses) / len(losses)


def found_inf(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The tensor that a GradScaler sets on a fused optimizer: above 0 if a gradient overflowed; the step is skipped."""
    found = vars(optimizer).get("found_inf")
    return found if isinstance(found, Tensor) else None


def stoppable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `found_inf` can make the optimizer skip an update. This is true of torch's own fused kernels."""
    return isinstance(optimizer, STOPPABLE) and all(group.get("fused") for group in optimizer.param_groups)


def begins_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the coming update is the first one with momentum.

    If it were skipped on the device, the momentum buffers would stay uninitialised.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    groups = (group["params"] for group in optimizer.param_groups if group["momentum"])
    # In torch's fused kernel, either all parameters of a group have a buffer or none has.
    firsts = (next((p for p in parameters if p.grad is not None), None) for parameters in groups)
    return any(p is not None and optimizer.state.get(p, {}).get("momentum_buffer") is None for p in firsts)
