"""Small nets, batches and optimizers that several tests train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import DigitsData, MlpModel
from tui_descent.scenario.validate import convert
from tui_descent.training.data import digits
from tui_descent.training.nets.mlp import Mlp

Made = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Made] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def mlp(
    *, seed: int = 0, dtype: torch.dtype = torch.float32, features: int = 64, classes: int = 10, **spec: Any
) -> Mlp:
    problems: list[Any] = []
    made = convert(MlpModel, {"name": "mlp", "depth": 3, "width": 16} | spec, "", problems)
    assert not problems
    generator = torch.Generator().manual_seed(seed)
    return Mlp(made, features=features, classes=classes, generator=generator).to(dtype)


def digit_batches(count: int, *, size: int = 32, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    data = digits.load(DigitsData())
    return [(data.x[n * size : (n + 1) * size].to(dtype), data.y[n * size : (n + 1) * size]) for n in range(count)]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def copy_of(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def state_of(optimizer: torch.optim.Optimizer) -> list[tuple[int, str, Any]]:
    """Everything the optimizer remembers, copied."""
    return [
        (n, key, value.clone() if isinstance(value, Tensor) else value)
        for n, inner in optimizer.state_dict()["state"].items()
        for key, value in sorted(inner.items())
    ]


def same_state(a: list[tuple[int, str, Any]], b: list[tuple[int, str, Any]]) -> bool:
    return [(n, key) for n, key, _ in a] == [(n, key) for n, key, _ in b] and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for (*_, x), (*_, y) in zip(a, b, strict=True)
    )
