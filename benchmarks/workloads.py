"""The four training loops W1 to W4 for benchmarks: seeded, on one device, with batches made in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Workload:
    """A model, its optimizer, and the batches to cycle through."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]
    loss_function: Callable[[Tensor, Tensor], Tensor]


def mlp(layers: int, device: str, *, fused: bool) -> Workload:
    """An MLP with `layers` hidden layers of 64, ReLU, 64 inputs and 10 classes; batch 64, SGD."""
    torch.manual_seed(0)
    hidden = [part for _ in range(layers) for part in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    return Workload(model, optimizer, _classes(64, 64, device), F.cross_entropy)


def wide(device: str, *, fused: bool) -> Workload:
    """An MLP 784-1024-1024-10; batch 128, Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).to(
        device
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    return Workload(model, optimizer, _classes(128, 784, device), F.cross_entropy)


class CharacterModel(nn.Module):
    """A 4-layer pre-LN transformer of width 128 over 96 characters, context 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 128)
        self.place = nn.Parameter(torch.randn(64, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 96)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(64))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 64) → (B, 64, 96)."""
        out: Tensor = self.head(self.blocks(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))
        return out


def transformer(device: str, *, fused: bool) -> Workload:
    """The `CharacterModel`; batch 16, AdamW."""
    torch.manual_seed(0)
    model = CharacterModel().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 96, (16, 65), generator=draw).to(device) for _ in range(8)]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Workload(model, optimizer, [(t[:, :-1], t[:, 1:]) for t in texts], loss)


def _classes(batch: int, features: int, device: str) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(batch, features, generator=draw).to(device),
            torch.randint(0, 10, (batch,), generator=draw).to(device),
        )
        for _ in range(8)
    ]


def make(name: str, device: str, *, fused: bool) -> Workload:
    """Make one of the workloads W1 to W4."""
    return {
        "W1": lambda: mlp(30, device, fused=fused),
        "W2": lambda: wide(device, fused=fused),
        "W3": lambda: transformer(device, fused=fused),
        "W4": lambda: mlp(200, device, fused=fused),
    }[name]()


TITLES = {
    "W1": "MLP, 30 hidden layers of 64, batch 64, SGD",
    "W2": "MLP 784-1024-1024-10, batch 128, Adam",
    "W3": "transformer, 4 layers of 128, batch 16×64, AdamW",
    "W4": "MLP, 200 hidden layers of 64, batch 64, SGD",
}
