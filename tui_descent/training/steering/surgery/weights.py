"""Re-initialises, freezes, unfreezes and kicks weights in place. The `Parameter` objects stay the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tui_descent.instruments.not_measured import why_not_measured
from tui_descent.protocol.layer_names import in_words
from tui_descent.scenario.spec import InitSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering.surgery.activation import module_at

DEFAULT_KICK = 0.01  # relative to a weight's norm
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


@torch.no_grad()
def reinitialize(model: nn.Module, spec: InitSpec, generator: Generator, *, layer: str | None = None) -> list[str]:
    """Draw new weights for the whole net or for `layer`, which is a module with its children or a single weight.
    Returns the names of the parameters.

    Linear, convolution and embedding weights are drawn; attention's joint weight is drawn separately for queries, keys
    and values. Weights of norm layers are set to 1. Biases are set to 0; the bias of a block's core is set to
    `spec.bias` if the block has an activation. Numbers are drawn on the CPU, so they do not depend on the device.
    Raises `ValueError` for a layer without such weights.
    """
    one = None if layer is None else dict(model.named_parameters()).get(layer)
    if one is not None:
        layer = str(layer).rpartition(".")[0]
    root = model if layer is None else module_at(model, layer)
    biased = {id(b.core) for b in model.modules() if isinstance(b, Block) and b.activation is not None}
    names = {id(p): name for name, p in model.named_parameters()}
    drawn: list[str] = []
    seen: set[int] = set()
    for path, module in root.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{path}.{name}" if path else f"{layer or ''}.{name}"
            if id(parameter) in seen or (one is not None and parameter is not one):
                continue
            if _fill(module, name, full_name, parameter, spec, generator, spec.bias if id(module) in biased else 0.0):
                seen.add(id(parameter))
                drawn.append(names[id(parameter)])
    if not drawn:
        raise ValueError(f"{in_words(layer or type(model).__name__)} has no weights to initialise")
    return drawn


def _fill(
    module: nn.Module, name: str, full_name: str, p: nn.Parameter, spec: InitSpec, generator: Generator, bias: float
) -> bool:
    """Draw or fill one parameter. Returns False if its kind is unknown, or if it holds no real or complex numbers."""
    if why_not_measured(p) is not None or 0 in p.stride():  # the entries of an expanded tensor share memory
        return False
    if isinstance(module, NORMS):
        p.fill_(1.0 if name == "weight" else 0.0)
    elif name.endswith("bias"):
        p.fill_(bias)
    elif p.dim() >= 2:
        values = torch.empty(p.shape, dtype=p.dtype)
        for part in values.chunk(3) if full_name.endswith(parts.QKV_WEIGHT_NAMES) else (values,):
            parts.init_weight(part, spec, generator, embedding=isinstance(module, nn.Embedding))
        p.copy_(values)
    else:
        return False
    return True


def freeze(model: nn.Module, layer: str) -> list[str]:
    """Stop training the layer's weights; returns the names of the parameters that this changed.

    Their gradients are set to None: the optimizer then skips them and applies neither weight decay nor momentum. Raises
    `ValueError` if nothing would be left to train.
    """
    parameters = parameters_of(model, layer)
    ids = {id(p) for p in parameters.values()}
    if not any(p.requires_grad and id(p) not in ids for p in model.parameters()):
        raise ValueError(f"{in_words(layer)} is the last layer that is not frozen; at least one has to be trained")
    changed = [name for name, p in parameters.items() if p.requires_grad]
    for p in parameters.values():
        p.requires_grad_(False)
        p.grad = None
    return changed


def unfreeze(model: nn.Module, layer: str) -> list[str]:
    """Train the layer's weights again; returns the names of the parameters that were frozen."""
    # Integers cannot have a gradient.
    trainable = {n: p for n, p in parameters_of(model, layer).items() if p.is_floating_point() or p.is_complex()}
    frozen = {name: p for name, p in trainable.items() if not p.requires_grad}
    for p in frozen.values():
        p.requires_grad_(True)
    return list(frozen)


@torch.no_grad()
def kick(
    model: nn.Module,
    generator: Generator,
    *,
    size: float = DEFAULT_KICK,
    direction: Sequence[Tensor | None] | None = None,
    length: float | None = None,
    slope: float = 0.0,
) -> dict[str, float]:
    """Move the weights a little. Returns the L2 norm of each parameter's move, by name.

    Without a `direction`, each parameter W with two or more dimensions and n elements moves by size·‖W‖/√n·N(0, 1), so
    by about size·‖W‖. `direction` has one tensor per parameter, or None for a parameter that does not move. With it,
    all parameters θ move along this direction by `length`, or by size·‖θ‖ if no `length` is given. The sign is opposite
    to `slope`, the slope of the loss along the direction; it is random if `slope` is 0. Frozen weights do not move.
    Raises `ValueError` if the length of the direction is zero or not finite.
    """
    named = list(model.named_parameters())
    moves: list[Tensor | None]
    if direction is None:
        moves = [
            size * p.norm() / p.numel() ** 0.5 * _normal(p, generator)
            if p.requires_grad and why_not_measured(p) is None and p.dim() >= 2
            else None
            for _, p in named
        ]
    else:
        along = [d if p.requires_grad else None for (_, p), d in zip(named, direction, strict=True)]
        direction_norm = float(
            torch.stack([d.double().norm() for d in along if d is not None] or [torch.zeros(())]).norm()
        )
        if not 0 < direction_norm < float("inf"):
            raise ValueError("the direction's length is zero or not finite")
        distance = size * float(torch.stack([p.double().norm() for _, p in named]).norm()) if length is None else length
        sign = -slope if slope else float(torch.rand((), generator=generator)) - 0.5
        moves = [None if d is None else math.copysign(distance / direction_norm, sign) * d for d in along]
    for (_, p), move in zip(named, moves, strict=True):
        if move is not None:
            p.add_(move)
    return {name: float(move.norm()) for (name, _), move in zip(named, moves, strict=True) if move is not None}


def _normal(p: Tensor, generator: Generator) -> Tensor:
    # Drawn on the CPU, so the numbers do not depend on the device.
    return torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)


def parameters_of(model: nn.Module, layer: str) -> dict[str, nn.Parameter]:
    """The parameters of the module `layer`, by name. If `layer` is the path of a weight, only this weight.

    Raises `ValueError` if there is no such layer, or if it has no weights.
    """
    weight = dict(model.named_parameters()).get(layer)
    if weight is not None:
        return {layer: weight}
    try:
        ids = {id(p) for p in model.get_submodule(layer).parameters()}
    except AttributeError:
        raise ValueError(f'no layer "{layer[:60]}" in {type(model).__name__}') from None
    parameters = {name: p for name, p in model.named_parameters() if id(p) in ids}
    if not parameters:
        raise ValueError(f"{in_words(layer)} has no weights")
    return parameters
