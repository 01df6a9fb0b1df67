"""Gradient clipping to a global norm, without synchronising with the GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.row_sums import SUMMED, l2_norm, real_view

# A gradient with more numbers is summed in parts.
LARGE = 1 << 16


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float, *, grad_scale: Tensor | None = None) -> Tensor | None:
    """Scale all gradients in place by min(1, limit/‖g‖₂). Returns the global norm before clipping, a scalar tensor.

    Returns None if no parameter has a gradient. Gradients are unchanged bit for bit if the norm is at most `limit`.
    They are also unchanged if the norm is not finite; the NaN guard handles that case. Does not synchronise on CUDA.
    `grad_scale` is the factor by which a GradScaler has multiplied the gradients. Source: Pascanu et al. 2013, arXiv
    1211.5063.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return None
    norm = global_norm(grads)
    if grad_scale is not None:
        norm = norm / grad_scale.to(norm.device)
    factor = torch.where(norm.isfinite() & (norm > limit), limit / norm, torch.ones_like(norm))
    grouped: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        numbers = grad._values() if grad.is_sparse else grad
        # Scaling the conjugate instead has the same effect, because the factor is real.
        grouped.setdefault((grad.device, grad.dtype), []).append(numbers.conj() if numbers.is_conj() else numbers)
    for (device, dtype), members in grouped.items():
        torch._foreach_mul_(members, factor.to(device, dtype))
    return norm


def grad_scale(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The factor by which a GradScaler has multiplied the gradients. None unless it leaves the division to a fused
    optimizer.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


@torch.no_grad()
def global_norm(grads: list[Tensor]) -> Tensor:
    """√Σ‖g‖² over all gradients, a scalar tensor on the first one's device.

    On CUDA and the CPU it is correct even if float32 squares overflow. On CUDA the sum is computed in float64. On the
    CPU float64 takes ten times as long, so it is used only if float32 is out of range, or for large gradients, whose
    float32 sum is inexact. MPS has no float64.
    """
    device_type = grads[0].device.type
    grads = [real_view(g.coalesce().values() if g.is_sparse else g) for g in grads]
    if device_type == "cpu" and not is_asynchronous(grads[0].device):
        if any(g.numel() > LARGE or g.dtype not in SUMMED for g in grads):
            return grads[0].new_tensor(math.hypot(*(float(l2_norm(g)) for g in grads)), dtype=torch.float64)
        norm = torch.nn.utils.get_total_norm(grads)
        # Between these bounds a float32 sum of squares neither underflows nor overflows.
        return norm if 1e-13 < float(norm) < 1e13 else _norm_float64(grads)
    return torch.nn.utils.get_total_norm(grads) if device_type == "mps" else _norm_float64(grads)


def _norm_float64(grads: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads if g.device.type == "cpu"]
    on_devices = [g for g in grads if g.device.type != "cpu"]
    if on_devices:
        norms += torch._foreach_norm(on_devices, 2.0, dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(grads[0].device) for n in norms]))
    return norm
