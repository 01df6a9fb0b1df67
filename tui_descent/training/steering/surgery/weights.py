"""Weights themselves: drawn anew, frozen and let go, or pushed, in place: a `Parameter` stays the one it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tui_descent.scenario.spec import InitSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering.surgery.activation import module_at

KICK = 0.01  # of a weight's norm
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


@torch.no_grad()
def redraw(model: nn.Module, spec: InitSpec, generator: Generator, *, layer: str | None = None) -> list[str]:
    """Draw the weights of the net, or of the module `layer` and what is in it; returns what was drawn, by name.

    Linear, convolution and embedding weights, and the joint ones of attention map by map, are drawn; norms are set to
    1 and biases to 0, those before an activation in a block to the spec's `bias`. On the CPU in the generator's order,
    so that the numbers do not depend on the device. Raises `ValueError` for a layer with nothing to draw.
    """
    root = model if layer is None else module_at(model, layer)
    biased = {id(b.core) for b in model.modules() if isinstance(b, Block) and b.activation is not None}
    names = {id(p): name for name, p in model.named_parameters()}
    drawn: list[str] = []
    seen: set[int] = set()
    for path, module in root.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = f"{path}.{name}" if path else f"{layer or ''}.{name}"
            if id(parameter) in seen:
                continue
            if _fill(module, name, place, parameter, spec, generator, spec.bias if id(module) in biased else 0.0):
                seen.add(id(parameter))
                drawn.append(names[id(parameter)])
    if not drawn:
        raise ValueError(f"{layer or type(model).__name__} has no weights that an init is made for")
    return drawn


def _fill(
    module: nn.Module, name: str, place: str, p: nn.Parameter, spec: InitSpec, generator: Generator, bias: float
) -> bool:
    """Draw or fill one parameter; False for one of an unknown kind."""
    if isinstance(module, NORMS):
        p.fill_(1.0 if name == "weight" else 0.0)
    elif name.endswith("bias"):
        p.fill_(bias)
    elif p.dim() >= 2:
        fresh = torch.empty(p.shape, dtype=p.dtype)
        for part in fresh.chunk(3) if place.endswith(parts.QKV_WEIGHT_NAMES) else (fresh,):
            parts.init_weight(part, spec, generator, embedding=isinstance(module, nn.Embedding))
        p.copy_(fresh)
    else:
        return False
    return True


def freeze(model: nn.Module, layer: str) -> list[str]:
    """Hold the layer's weights as they are; returns the parameters it holds now and did not before.

    Their gradients are set to None, which an optimizer passes over, decay and momentum included.
    Raises `ValueError` where nothing would be left to train.
    """
    held = _parameters(model, layer)
    ids = {id(p) for p in held.values()}
    if not any(p.requires_grad and id(p) not in ids for p in model.parameters()):
        raise ValueError(f"{layer} is all that still trains; a net with every layer frozen has no gradient")
    changed = [name for name, p in held.items() if p.requires_grad]
    for p in held.values():
        p.requires_grad_(False)
        p.grad = None
    return changed


def unfreeze(model: nn.Module, layer: str) -> list[str]:
    """Let the layer's weights train again; returns the parameters that were held."""
    held = {name: p for name, p in _parameters(model, layer).items() if not p.requires_grad}
    for p in held.values():
        p.requires_grad_(True)
    return list(held)


@torch.no_grad()
def kick(
    model: nn.Module,
    generator: Generator,
    *,
    size: float = KICK,
    direction: Sequence[Tensor | None] | None = None,
    length: float | None = None,
    slope: float = 0.0,
) -> dict[str, float]:
    """A small push; returns by name the length of each weight's move, an L2 norm.

    Every weight with two dimensions or more moves by size·‖W‖/√n·N(0, 1), so by about size·‖W‖. Along a `direction`,
    a tensor a parameter, all move together by `length`, else by size·‖θ‖: against the loss' `slope` along it, and where
    that is 0 either way, as the generator says. Frozen weights stay.
    """
    named = list(model.named_parameters())
    moves: list[Tensor | None]
    if direction is None:
        moves = [
            size * p.norm() / p.numel() ** 0.5 * _normal(p, generator) if p.requires_grad and p.dim() >= 2 else None
            for _, p in named
        ]
    else:
        along = [d if p.requires_grad else None for (_, p), d in zip(named, direction, strict=True)]
        unit = float(torch.stack([d.double().norm() for d in along if d is not None] or [torch.zeros(())]).norm())
        if not 0 < unit < float("inf"):
            raise ValueError("the direction has no length; there is nothing to push along")
        far = size * float(torch.stack([p.double().norm() for _, p in named]).norm()) if length is None else length
        sign = -slope if slope else float(torch.rand((), generator=generator)) - 0.5
        moves = [None if d is None else math.copysign(far / unit, sign) * d for d in along]
    for (_, p), move in zip(named, moves, strict=True):
        if move is not None:
            p.add_(move)
    return {name: float(move.norm()) for (name, _), move in zip(named, moves, strict=True) if move is not None}


def _normal(p: Tensor, generator: Generator) -> Tensor:
    # On the CPU, so that the numbers do not depend on the device.
    return torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)


def _parameters(model: nn.Module, layer: str) -> dict[str, nn.Parameter]:
    inside = {id(p) for p in module_at(model, layer).parameters()}
    found = {name: p for name, p in model.named_parameters() if id(p) in inside}
    if not found:
        raise ValueError(f"{layer} has no weights of its own")
    return found
