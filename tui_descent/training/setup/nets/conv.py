"""A small convolutional net for images, made of blocks that knobs can change."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from tui_descent.scenario.spec import ConvModel, InitSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, skip_of
from tui_descent.training.setup.nets.mlp import default_scale


class ConvNet(nn.Module):
    """stem Conv3×3(1, W) → D blocks of activation(Conv3×3(W, W)) → mean over positions → head Linear(W, classes).

    Norm layers normalise over channels and positions together: `layer` is a GroupNorm with one group (Wu & He 2018,
    arXiv 1803.08494), `rms` is the same without subtracting the mean.
    """

    def __init__(self, spec: ConvModel, *, image: tuple[int, int], classes: int, generator: Generator) -> None:
        super().__init__()
        width = spec.width
        scale = default_scale(spec.depth)
        self.image = image
        self.stem = _conv(1, width, spec.init, generator)
        self.blocks = nn.Sequential(
            *(
                Block(
                    _conv(width, width, spec.init, generator, bias=spec.init.bias),
                    parts.activation(spec.activation),
                    kind="conv",
                    norm=parts.norm(spec.norm, width, images=True),
                    where=spec.norm.where,
                    skip=skip_of(spec.residual, scale),
                    dropout=spec.dropout,
                )
                for _ in range(spec.depth)
            )
        )
        self.head = parts.linear(width, classes, spec.init, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, height · width) → (B, classes)."""
        x = x.view(-1, 1, *self.image)
        h = self.blocks(self.stem(x))  # (B, W, height, width)
        logits: Tensor = self.head(h.mean(dim=(2, 3)))
        return logits


def _conv(channels_in: int, channels_out: int, init: InitSpec, generator: Generator, *, bias: float = 0.0) -> nn.Conv2d:
    layer = parts.empty(nn.Conv2d, channels_in, channels_out, 3, padding=1)
    assert isinstance(layer, nn.Conv2d)
    parts.init_weight(layer.weight, init, generator)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer
