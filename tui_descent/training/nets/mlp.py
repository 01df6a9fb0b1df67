"""The multilayer perceptron whose blocks can be steered."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from tui_descent.scenario.spec import InitSpec, MlpModel
from tui_descent.training.nets import parts
from tui_descent.training.nets.block import Block, Skip


class Mlp(nn.Module):
    """stem Linear(in, W) → D blocks, W to W → head Linear(W, classes)."""

    def __init__(self, spec: MlpModel, *, features: int, classes: int, generator: Generator) -> None:
        super().__init__()
        width = spec.width
        scale = spec.residual.scale or default_scale(spec.depth)
        self.stem = _linear(features, width, spec.init, generator)
        self.blocks = nn.Sequential(
            *(
                Block(
                    _linear(width, width, spec.init, generator, bias=spec.init.bias),
                    parts.activation(spec.activation),
                    norm=parts.norm(spec.norm, width),
                    where=spec.norm.where,
                    skip=Skip(scale) if spec.residual.name == "on" else None,
                )
                for _ in range(spec.depth)
            )
        )
        self.head = _linear(width, classes, spec.init, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) → (B, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


def default_scale(depth: int) -> float:
    """1/√D: with it the sum of D branches keeps the size of one."""
    return float(depth**-0.5)


def _linear(fan_in: int, fan_out: int, init: InitSpec, generator: Generator, *, bias: float = 0.0) -> nn.Linear:
    # Made empty, so that the global random numbers are left alone.
    with torch.device("meta"):
        linear = nn.Linear(fan_in, fan_out)
    linear.to_empty(device="cpu")
    parts.draw(linear.weight, init, generator)
    nn.init.constant_(linear.bias, bias)
    return linear
