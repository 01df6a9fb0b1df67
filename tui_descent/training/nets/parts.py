"""The parts a block is made of, by name: activations, norms, and how weights are drawn."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from tui_descent.scenario.spec import ActivationSpec, InitSpec, NormSpec


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


def norm(spec: NormSpec, width: int) -> nn.Module | None:
    """A fresh normalisation over the last dimension, or None."""
    if spec.name == "none":
        return None
    return nn.LayerNorm(width) if spec.name == "layer" else nn.RMSNorm(width)


@torch.no_grad()
def draw(weight: Tensor, spec: InitSpec, generator: Generator) -> None:
    """Draw a weight (out, in) in place.

    he: N(0, 2/in) (He et al. 2015, arXiv 1502.01852) · xavier: N(0, 2/(in+out)) (Glorot & Bengio 2010)
    · lecun: N(0, 1/in) · orthogonal (Saxe et al. 2014, 1312.6120) · normal: N(0, std²).
    `gain` multiplies the standard deviation.
    """
    fan_out, fan_in = weight.shape
    if spec.name == "orthogonal":
        nn.init.orthogonal_(weight, gain=spec.gain, generator=generator)
        return
    std = {
        "he": (2 / fan_in) ** 0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
        "lecun": (1 / fan_in) ** 0.5,
        "normal": spec.std,
    }[spec.name]
    weight.normal_(0, std * spec.gain, generator=generator)
