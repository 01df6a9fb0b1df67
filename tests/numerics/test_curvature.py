"""Curvature against an independent twin (forward-over-reverse, float64), and the limits against optimizers that run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tui_descent.instruments import curvature
from tui_descent.instruments.curvature import Curvature, preconditioner, stability_limit
from tui_descent.scenario.spec import Surface as SurfaceName
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.nets.surface import Surface


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Transformer(nn.Module):
    """One pre-norm block, 2 heads, through the fused attention call."""

    def __init__(self, *, width: int = 8, symbols: int = 5, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
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


def problem(name: str, dtype: torch.dtype, *, steps: int = 15) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A net a few Adam steps into its training, in eval mode, and its loss on one batch."""
    torch.manual_seed(1)
    model = {"mlp": mlp, "conv": conv, "transformer": Transformer}[name]().double()
    shape = {"mlp": (48, 6), "conv": (24, 1, 8, 8), "transformer": (12, 6)}[name]
    x = torch.randint(5, shape) if name == "transformer" else torch.randn(shape, dtype=torch.float64)
    y = torch.randint(4, (shape[0] * (shape[1] if name == "transformer" else 1),))
    train(model, lambda: F.cross_entropy(model(x), y), steps=steps)
    model.to(dtype).eval()
    x = x.to(dtype) if x.is_floating_point() else x
    return model, lambda: F.cross_entropy(model(x), y)


def train(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float = 0.01) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def twin(model: nn.Module, loss: Callable[[], Tensor], scales: list[Tensor] | None = None) -> Tensor:
    """All eigenvalues, ascending, of the Hessian by forward-over-reverse in float64."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    dtype = next(model.parameters()).dtype
    model.double()
    names = list(kept)
    sizes = [kept[name].numel() for name in names]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self) -> Tensor:
            return loss()

    def of(flat: Tensor) -> Tensor:
        parts = {f"net.{n}": v.view_as(kept[n]) for n, v in zip(names, flat.split(sizes), strict=True)}
        return functional_call(Loss(), parts, ())

    with sdpa_kernel(SDPBackend.MATH):
        full = hessian(of)(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    model.to(dtype)
    if scales is not None:
        s = torch.cat([scale.reshape(-1) for scale in scales]).double()
        full = s[:, None] * full * s
    return torch.linalg.eigvalsh((full + full.T) / 2)


def quadratic(eigenvalues: Tensor) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    """½ wᵀAw from a random point; A has the eigenvalues, in a random basis when it is small."""
    n = len(eigenvalues)
    w = nn.Parameter(torch.randn(n, dtype=torch.float64))
    if n > 200:
        return w, lambda: 0.5 * (eigenvalues * w.square()).sum()
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    a = basis @ torch.diag(eigenvalues) @ basis.T
    return w, lambda: 0.5 * w @ a @ w
