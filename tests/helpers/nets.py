"""Small nets, batches and optimizers that several tests train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import DigitsData, MlpModel
from tui_descent.scenario.validate import convert
from tui_descent.training.setup.data import digits
from tui_descent.training.setup.nets.mlp import Mlp

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


class FailingSGD(torch.optim.SGD):
    """With `fails`, raises inside its step, after the pre-hooks; calls super().step()."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise RuntimeError("no memory")
        return super().step(closure)


def mlp(
    *, seed: int = 0, dtype: torch.dtype = torch.float32, features: int = 64, classes: int = 10, **spec: Any
) -> Mlp:
    problems: list[Any] = []
    made = convert(MlpModel, {"name": "mlp", "depth": 3, "width": 16} | spec, "", problems)
    assert not problems
    generator = torch.Generator().manual_seed(seed)
    return Mlp(made, features=features, classes=classes, generator=generator).to(dtype)


class ConvNet(nn.Module):
    """A net for images of digits: convolutions, bounded and unbounded activations, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) → (B, 10)."""
        out: Tensor = self.body(x.reshape(-1, 1, 8, 8))
        return out


class AttentionBlock(nn.Module):
    """A pre-norm block with torch's attention, whose `in_proj_weight` is a parameter of the attention module itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.wide = nn.Linear(width, 2 * width)
        self.bend = nn.GELU()
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width), the same out."""
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        out: Tensor = x + self.narrow(self.bend(self.wide(x)))
        return out


class PixelTransformer(nn.Module):
    """A transformer that reads a digit's pixels as 17 tokens; the head is tied to the embedding."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, width)
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(3))
        self.head = nn.Linear(width, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) of 0…1 → (B, 17)."""
        h = self.embed((x * 16).round().long().clamp(0, 16)[:, 24:40])
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(h.mean(dim=1))
        return out


def digit_batches(count: int, *, size: int = 32, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    data = digits.load(DigitsData())
    return [(data.x[n * size : (n + 1) * size].to(dtype), data.y[n * size : (n + 1) * size]) for n in range(count)]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def copy_of(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all tensors are bitwise equal."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_of(optimizer: torch.optim.Optimizer) -> list[tuple[int, str, Any]]:
    """A copy of the optimizer state."""
    return [
        (n, key, value.clone() if isinstance(value, Tensor) else value)
        for n, inner in optimizer.state_dict()["state"].items()
        for key, value in sorted(inner.items())
    ]


def same_state(a: list[tuple[int, str, Any]], b: list[tuple[int, str, Any]]) -> bool:
    return [(n, key) for n, key, _ in a] == [(n, key) for n, key, _ in b] and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for (*_, x), (*_, y) in zip(a, b, strict=True)
    )
