"""The derivative φ′ of every activation, by its formula. The chain-rule ledger compares the results with those of
autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def derivative(module: nn.Module, z: Tensor) -> Tensor | None:
    """φ′(z), elementwise, in the shape of z; None if this file has no formula for the module."""
    old, new, t = (getattr(module, name, None) for name in ("old", "new", "t"))
    if isinstance(t, float) and isinstance(old, nn.Module) and isinstance(new, nn.Module):  # a `Blend`
        before, after = derivative(old, z), derivative(new, z)
        return None if before is None or after is None else (1 - t) * before + t * after
    formula = FORMULAS.get(type(module))
    return None if formula is None else formula(module, z)


def _sigmoid(_: nn.Module, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


def _gelu(module: nn.Module, z: Tensor) -> Tensor:
    if getattr(module, "approximate", "none") == "tanh":  # z·(1 + tanh u)/2 with u = √(2/π)·(z + 0.044715·z³), ibid.
        slope = math.sqrt(2 / math.pi)
        tanh = torch.tanh(slope * (z + 0.044715 * z**3))
        return (1 + tanh + z * (1 - tanh**2) * slope * (1 + 3 * 0.044715 * z**2)) / 2
    # z·Φ(z): Φ + z·φ (Hendrycks & Gimpel 2016, arXiv 1606.08415)
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return cdf + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _silu(_: nn.Module, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _leaky_relu(module: nn.Module, z: Tensor) -> Tensor:
    below = float(getattr(module, "negative_slope", 0.0))
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, below))


def _elu(module: nn.Module, z: Tensor) -> Tensor:
    alpha = float(getattr(module, "alpha", 1.0))
    return torch.where(z > 0, torch.ones_like(z), alpha * torch.exp(z))


def _softplus(module: nn.Module, z: Tensor) -> Tensor:
    return torch.sigmoid(float(getattr(module, "beta", 1.0)) * z)


FORMULAS: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.ReLU: _leaky_relu,
    nn.LeakyReLU: _leaky_relu,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
    nn.Sigmoid: _sigmoid,
    nn.Tanh: lambda _, z: 1 - torch.tanh(z) ** 2,
    nn.ELU: _elu,
    nn.Softplus: _softplus,
    nn.Identity: lambda _, z: torch.ones_like(z),
}
