"""Creates parts of nets: activations, norm layers and linear layers, and initialises weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import ActivationSpec, InitSpec, NormSpec

# The end of the names of attention weights that contain the three matrices for queries, keys and values.
QKV_WEIGHT_NAMES = ("qkv.weight", "in_proj_weight")


class ChannelNorm(nn.GroupNorm):
    """LayerNorm for images (B, C, H, W), over channels and positions together: GroupNorm with one group."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


class ChannelRMSNorm(nn.RMSNorm):
    """RMSNorm for images (B, C, H, W), over channels and positions together, with one gain per channel.

    The magnitudes of different positions carry information. Normalising each position separately would remove it, and
    gains per channel could not restore it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        assert self.weight is not None
        return F.rms_norm(x, x.shape[1:], eps=self.eps) * self.weight[:, None, None]


def activation(spec: ActivationSpec) -> nn.Module:
    """A new activation module."""
    if spec.name == "leaky_relu":
        return nn.LeakyReLU(spec.slope)
    without_options: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "elu": nn.ELU,
        "softplus": nn.Softplus,
        "identity": nn.Identity,
    }
    return without_options[spec.name]()


def norm(spec: NormSpec, width: int, *, images: bool = False) -> nn.Module | None:
    """A new norm layer over the last dimension, or with `images` over channels and positions. None for `none`."""
    if spec.name == "none":
        return None
    if images:
        return ChannelNorm(width) if spec.name == "layer" else ChannelRMSNorm(width)
    return nn.LayerNorm(width) if spec.name == "layer" else nn.RMSNorm(width)


def empty(kind: type[nn.Module], *args: int, **options: object) -> nn.Module:
    """A module with uninitialised weights. No numbers are drawn from torch's global random number generator."""
    with torch.device("meta"):
        module = kind(*args, **options)
    return module.to_empty(device="cpu")


def linear(fan_in: int, fan_out: int, init: InitSpec, generator: Generator, *, bias: float = 0.0) -> nn.Linear:
    """A Linear layer (fan_in → fan_out) with weights drawn from `generator` and all biases equal to `bias`."""
    layer = empty(nn.Linear, fan_in, fan_out)
    assert isinstance(layer, nn.Linear)
    init_weight(layer.weight, init, generator)
    nn.init.constant_(layer.bias, bias)
    return layer


@torch.no_grad()
def init_weight(weight: Tensor, spec: InitSpec, generator: Generator, *, embedding: bool = False) -> None:
    """Initialise a weight (out, in, …) in place.

    he: N(0, 2/in) (He et al. 2015, arXiv 1502.01852) · xavier: N(0, 2/(in+out)) (Glorot & Bengio 2010)
    · lecun: N(0, 1/in) · orthogonal (Saxe et al. 2014, arXiv 1312.6120) · normal: N(0, std²).
    `gain` multiplies the standard deviation. For a convolution, in and out are multiplied by the size of the kernel.
    For an embedding with weight (rows, out), in is 1, because one row is looked up at a time.
    """
    if spec.name == "orthogonal":
        nn.init.orthogonal_(weight, gain=spec.gain, generator=generator)
        return
    kernel = weight[0, 0].numel() if weight.dim() > 2 else 1
    fan_out, fan_in = (weight.shape[1], 1) if embedding else (weight.shape[0] * kernel, weight.shape[1] * kernel)
    std = {
        "he": (2 / fan_in) ** 0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
        "lecun": (1 / fan_in) ** 0.5,
        "normal": spec.std,
    }[spec.name]
    weight.normal_(0, std * spec.gain, generator=generator)
