"""A small causal transformer for characters. Each attention and each MLP is a block that knobs can change.

Shapes: B sequences, T positions, W width, H heads, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import InitSpec, TransformerModel
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, skip_of
from tui_descent.training.setup.nets.mlp import default_scale

MLP_RATIO = 4  # inner width of the MLP block, in units of W


class Attention(nn.Module):
    """Causal self-attention, softmax(QKᵀ/√(W/H))·V for every head, followed by a Linear."""

    def __init__(self, width: int, heads: int, init: InitSpec, generator: Generator) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = parts.linear(width, 3 * width, init, generator)
        with torch.no_grad():
            for part in self.qkv.weight.chunk(3):  # initialise the three W×W matrices separately
                parts.init_weight(part, init, generator)
        self.out = parts.linear(width, width, init, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) → (B, T, W)."""
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, T, W/H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(b, t, w))
        return out


class Transformer(nn.Module):
    """Token + position embedding → D layers of two blocks, attention and MLP → head Linear(W, V).

    Attention and MLP alternate in `blocks`: `blocks.0` is the attention of the first layer, `blocks.1` its MLP. An MLP
    is Linear(W, 4W) → activation → Linear(4W, W). Each of the 2·D blocks has its own residual connection, norm layer
    and dropout. A "pre" norm layer comes before the attention or MLP, a "post" norm layer after the skip:
    norm(x + f(x)). There is no norm layer before the head.
    """

    def __init__(self, spec: TransformerModel, *, symbols: int, generator: Generator) -> None:
        super().__init__()
        width = spec.width
        self.tokens = _embedding(symbols, width, spec.init, generator)
        self.places = _embedding(spec.context, width, spec.init, generator)
        blocks: list[Block] = []
        for _ in range(spec.depth):
            blocks.append(_block(spec, Attention(width, spec.heads, spec.init, generator), None, None, "attention"))
            up = parts.linear(width, MLP_RATIO * width, spec.init, generator, bias=spec.init.bias)
            down = parts.linear(MLP_RATIO * width, width, spec.init, generator)
            blocks.append(_block(spec, up, parts.activation(spec.activation), down, "up"))
        self.blocks = nn.Sequential(*blocks)
        self.head = parts.linear(width, symbols, spec.init, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T), T at most the context → logits of the next token (B, T, V)."""
        h = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.blocks(h))
        return logits


def _block(
    spec: TransformerModel, core: nn.Module, activation: nn.Module | None, out: nn.Module | None, kind: str
) -> Block:
    scale = default_scale(2 * spec.depth)
    return Block(
        core,
        activation,
        kind=kind,
        out=out,
        norm=parts.norm(spec.norm, spec.width),
        where=spec.norm.where,
        skip=skip_of(spec.residual, scale),
        dropout=spec.dropout,
        norm_after_skip=True,
        norm_places=("pre", "post"),
    )


def _embedding(rows: int, width: int, init: InitSpec, generator: Generator) -> nn.Embedding:
    layer = parts.empty(nn.Embedding, rows, width)
    assert isinstance(layer, nn.Embedding)
    parts.init_weight(layer.weight, init, generator, embedding=True)
    return layer
