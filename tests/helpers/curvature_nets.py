"""Nets and forms whose Hessian is known: by hand, or by the twin, central differences of plain gradients.

The twin takes no second derivative, so it goes through the fused attention kernel. (`torch.func.hessian` is no twin: in
torch 2.13 it is wrong by 1e-3 for layer norm's weight, where double backward and finite differences agree to 1e-10.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Transformer(nn.Module):
    """One pre-norm block, 2 heads, through the fused attention call."""

    def __init__(self, *, width: int = 8, symbols: int = 5, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        b, t, d = h.shape
        q, k, v = self.qkv(self.norm(h)).view(b, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        h = h + self.out(mixed)
        return self.head(h + self.mlp(h)).flatten(0, 1)


def mlp(features: int = 6, width: int = 10, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, classes)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.SiLU(), nn.Flatten(), nn.Linear(16, 4)
    )


def problem(
    name: str, dtype: torch.dtype, *, steps: int = 15, device: str = "cpu"
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A net a few Adam steps into its training, in eval mode, and its loss on one batch."""
    torch.manual_seed(1)
    model = {"mlp": mlp, "conv": conv, "transformer": Transformer}[name]().double()
    shape = {"mlp": (48, 6), "conv": (24, 1, 8, 8), "transformer": (12, 6)}[name]
    x = torch.randint(5, shape) if name == "transformer" else torch.randn(shape, dtype=torch.float64)
    y = torch.randint(4, (shape[0] * (shape[1] if name == "transformer" else 1),))
    train(model, lambda: F.cross_entropy(model(x), y), steps=steps)
    model.to(device, dtype).eval()
    x, y = x.to(device, dtype if x.is_floating_point() else x.dtype), y.to(device)
    return model, lambda: F.cross_entropy(model(x), y)


def train(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float = 0.01) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def twin(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, nudge: float = 1e-5) -> Tensor:
    """The Hessian by central differences of gradients, (n, n), float64; good to about 1e-10."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    sizes = [p.numel() for p in parameters]

    def gradient(at: Tensor) -> Tensor:
        with torch.no_grad():
            for p, part in zip(parameters, at.split(sizes), strict=True):
                p.copy_(part.view_as(p))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(), parameters)])

    rows = [
        (gradient(flat + step) - gradient(flat - step)) / (2 * nudge) for step in nudge * torch.eye(len(flat)).double()
    ]
    gradient(flat)
    full = torch.stack(rows)
    return (full + full.T) / 2


@functools.cache
def twin_eigenvalues(name: str) -> Tensor:
    model, loss = problem(name, torch.float64)
    return torch.linalg.eigvalsh(twin(list(model.parameters()), loss))


def quadratic(eigenvalues: Tensor) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    """½ wᵀAw from a random point; A has the eigenvalues, in a random basis when it is small."""
    n = len(eigenvalues)
    w = nn.Parameter(torch.randn(n, dtype=torch.float64))
    if n > 200:
        return w, lambda: 0.5 * (eigenvalues * w.square()).sum()
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    a = basis @ torch.diag(eigenvalues) @ basis.T
    return w, lambda: 0.5 * w @ a @ w
