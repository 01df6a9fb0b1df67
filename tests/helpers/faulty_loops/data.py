"""Small data sets and the nets that several loops share."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import DigitsData
from tui_descent.training.setup.data import digits as shipped


def blobs(n: int = 1024, d: int = 32, classes: int = 10, *, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Classes around random centres: x (n, d), y (n,)."""
    g = torch.Generator().manual_seed(3)
    centres = torch.randn(classes, d, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    return centres[y] + spread * torch.randn(n, d, generator=g), y


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    data = shipped.load(DigitsData())
    return data.x, data.y


def digits() -> tuple[Tensor, Tensor]:
    """Hand-written digits, normalised: x (1437, 1, 8, 8), y (1437,)."""
    x, y = _digits()
    return x.view(-1, 1, 8, 8), y


def line(n: int = 1024, d: int = 8, *, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """A regression with noise: x (n, d), y (n, 1) of about unit variance."""
    g = torch.Generator().manual_seed(4)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, 1, generator=g) / d**0.5
    return x, x @ w + noise * torch.randn(n, 1, generator=g)


def wave(n: int = 512, length: int = 12) -> tuple[Tensor, Tensor]:
    """Pieces of sine waves of random phase and the value that follows: x (n, length, 1), y (n, 1)."""
    g = torch.Generator().manual_seed(5)
    phase = 6.28 * torch.rand(n, 1, generator=g)
    t = phase + 0.5 * torch.arange(length + 1)
    return torch.sin(t[:, :-1]).unsqueeze(2), torch.sin(t[:, -1:])


def tokens(n: int = 512, length: int = 12, symbols: int = 16) -> Tensor:
    """Sequences that count upwards in steps of 1 to 3, modulo the number of symbols: (n, length)."""
    g = torch.Generator().manual_seed(6)
    start, by = torch.randint(0, symbols, (n, 1), generator=g), torch.randint(1, 4, (n, 1), generator=g)
    return (start + by * torch.arange(length)) % symbols


def batches(n: int, steps: int, size: int = 32) -> Iterator[Tensor]:
    """The indices of one batch for each step."""
    g = torch.Generator().manual_seed(7)
    for _ in range(steps):
        yield torch.randint(0, n, (size,), generator=g)


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between them."""
    parts: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        parts += [nn.Linear(wide, narrow), activation()]
    return nn.Sequential(*parts[:-1])


class ConvNet(nn.Module):
    """Two convolutions and a head for 8×8 images, written with functions in `forward`."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 4, classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Lstm(nn.Module):
    """An LSTM whose last output goes through a linear layer."""

    def __init__(self, inputs: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class CausalBlock(nn.Module):
    """A pre-LN block of a GPT, with one attention head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).chunk(3, dim=-1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Gpt(nn.Module):
    """A small GPT. `forward` returns logits of shape (batch, length, symbols)."""

    def __init__(self, symbols: int = 16, width: int = 24, length: int = 12, blocks: int = 2) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(CausalBlock(width) for _ in range(blocks))
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tok(ids) + self.pos(torch.arange(ids.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The cross-entropy of each next token."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
