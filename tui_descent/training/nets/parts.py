"""The parts a net is made of, by name: activations, norms, and how weights are drawn."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import ActivationSpec, InitSpec, NormSpec

# Names of the joint weights of attention: three maps, for queries, keys and values, one under the other.
JOINT = ("qkv.weight", "in_proj_weight")


class ChannelNorm(nn.GroupNorm):
    """LayerNorm for images (B, C, H, W): GroupNorm with one group, so over channels and places together."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


class ChannelRMSNorm(nn.RMSNorm):
    """RMSNorm for images (B, C, H, W): over channels and places together, as `ChannelNorm`, with a gain a channel.

    Over the channels of each place it would take the size of every place away, which says where something is, and no
    gain of a channel gives that back.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        assert self.weight is not None
        return F.rms_norm(x, x.shape[1:], eps=self.eps) * self.weight[:, None, None]


def activation(spec: ActivationSpec) -> nn.Module:
    """A fresh activation module."""
    if spec.name == "leaky_relu":
        return nn.LeakyReLU(spec.slope)
    plain: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "elu": nn.ELU,
        "softplus": nn.Softplus,
        "identity": nn.Identity,
    }
    return plain[spec.name]()


def norm(spec: NormSpec, width: int, *, images: bool = False) -> nn.Module | None:
    """A fresh normalisation over the last dimension, of `images` over channels and places, or None."""
    if spec.name == "none":
        return None
    if images:
        return ChannelNorm(width) if spec.name == "layer" else ChannelRMSNorm(width)
    return nn.LayerNorm(width) if spec.name == "layer" else nn.RMSNorm(width)


def empty(kind: type[nn.Module], *args: int, **options: object) -> nn.Module:
    """A module whose weights are yet to be drawn: so that the global random numbers are left alone."""
    with torch.device("meta"):
        module = kind(*args, **options)
    return module.to_empty(device="cpu")


def linear(fan_in: int, fan_out: int, init: InitSpec, generator: Generator, *, bias: float = 0.0) -> nn.Linear:
    """A Linear drawn from the generator."""
    made = empty(nn.Linear, fan_in, fan_out)
    assert isinstance(made, nn.Linear)
    draw(made.weight, init, generator)
    nn.init.constant_(made.bias, bias)
    return made


@torch.no_grad()
def draw(weight: Tensor, spec: InitSpec, generator: Generator, *, lookup: bool = False) -> None:
    """Draw a weight (out, in, …) in place.

    he: N(0, 2/in) (He et al. 2015, arXiv 1502.01852) · xavier: N(0, 2/(in+out)) (Glorot & Bengio 2010)
    · lecun: N(0, 1/in) · orthogonal (Saxe et al. 2014, 1312.6120) · normal: N(0, std²).
    `gain` multiplies the standard deviation. Of a convolution, in and out count every place of the window. Of an
    embedding (`lookup`, weight (rows, out)) in is 1, since one row at a time is looked up.
    """
    if spec.name == "orthogonal":
        nn.init.orthogonal_(weight, gain=spec.gain, generator=generator)
        return
    window = weight[0, 0].numel() if weight.dim() > 2 else 1
    fan_out, fan_in = (weight.shape[1], 1) if lookup else (weight.shape[0] * window, weight.shape[1] * window)
    std = {
        "he": (2 / fan_in) ** 0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
        "lecun": (1 / fan_in) ** 0.5,
        "normal": spec.std,
    }[spec.name]
    weight.normal_(0, std * spec.gain, generator=generator)
