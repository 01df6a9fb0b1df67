"""Clipping to a global norm, in the optimizer's pre-hook, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import far


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float, *, grad_scale: Tensor | None = None) -> Tensor | None:
    """Scale all gradients by min(1, limit/‖g‖₂), in place; the norm before (`grad_norm_preclip`) as a scalar tensor.

    None where nothing has a gradient. Under `limit` gradients keep their bits. A norm that is not finite changes
    nothing: that is the guard's to judge. Nothing is read back on CUDA; the caller reads the norm when it takes a
    reading. `grad_scale` is a GradScaler's, which gradients are still multiplied by. Pascanu 2013, arXiv 1211.5063.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return None
    norm = global_norm(grads)
    if grad_scale is not None:
        norm = norm / grad_scale.to(norm.device)
    factor = torch.where(norm.isfinite() & (norm > limit), limit / norm, torch.ones_like(norm))
    by_place: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        by_place.setdefault((grad.device, grad.dtype), []).append(grad)
    for (device, dtype), members in by_place.items():
        torch._foreach_mul_(members, factor.to(device, dtype))
    return norm


def grad_scale(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What a GradScaler's step still multiplies the gradients by: a fused optimizer divides by it on the way."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


@torch.no_grad()
def global_norm(grads: list[Tensor]) -> Tensor:
    """√Σ‖g‖² over all, a scalar tensor on the first one's device, right wherever the sum of squares would not be.

    In float64 on CUDA; on the CPU, where it costs ten times as much, only when float32 has left its range; MPS has
    float32 alone.
    """
    where = grads[0].device.type
    if where == "cpu" and not far(grads[0].device):
        norm = torch.nn.utils.get_total_norm(grads)
        # Between these a float32 sum of squares loses nothing to under- or overflow.
        return norm if 1e-13 < float(norm) < 1e13 else _wide(grads)
    return torch.nn.utils.get_total_norm(grads) if where == "mps" else _wide(grads)


def _wide(grads: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads if g.device.type == "cpu"]
    rest = [g for g in grads if g.device.type != "cpu"]
    if rest:
        norms += torch._foreach_norm(rest, 2.0, dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(grads[0].device) for n in norms]))
    return norm
