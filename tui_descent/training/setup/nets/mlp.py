"""A multilayer perceptron, made of blocks that knobs can change."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from tui_descent.scenario.spec import MlpModel
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, skip_of


class Mlp(nn.Module):
    """stem Linear(in, W) → D blocks of activation(Linear(W, W)) → head Linear(W, classes)."""

    def __init__(self, spec: MlpModel, *, features: int, classes: int, generator: Generator) -> None:
        super().__init__()
        width = spec.width
        scale = default_scale(spec.depth)
        self.stem = parts.linear(features, width, spec.init, generator)
        self.blocks = nn.Sequential(
            *(
                Block(
                    parts.linear(width, width, spec.init, generator, bias=spec.init.bias),
                    parts.activation(spec.activation),
                    norm=parts.norm(spec.norm, width),
                    where=spec.norm.where,
                    skip=skip_of(spec.residual, scale),
                    dropout=spec.dropout,
                )
                for _ in range(spec.depth)
            )
        )
        self.head = parts.linear(width, classes, spec.init, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) → (B, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


def default_scale(depth: int) -> float:
    """1/√D, where D is the number of blocks. With this factor the sum of D branches has about the magnitude of a single
    branch.
    """
    return float(depth**-0.5)
