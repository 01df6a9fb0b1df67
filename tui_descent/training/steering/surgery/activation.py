"""Replaces activations, at once or by a transition from the old activation to the new one."""

from __future__ import annotations

from torch import Tensor, nn

from tui_descent.instruments.net_structure import is_activation
from tui_descent.protocol.layer_names import in_words
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering.surgery.transition import Transition

BLEND_STEPS = 50


class Blend(nn.Module):
    """The activation during a transition: (1 − t)·old(z) + t·new(z). At t = 0 and t = 1 it is exactly one of them."""

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old, self.new, self.t = old, new, 0.0

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise, any shape."""
        if self.t == 0.0:
            old: Tensor = self.old(z)
            return old
        if self.t == 1.0:
            new: Tensor = self.new(z)
            return new
        # An in-place module must not overwrite the input of the other module.
        blended: Tensor = (1 - self.t) * self.old(_input_for(self.old, z)) + self.t * self.new(_input_for(self.new, z))
        return blended


def swap_activation(block: Block, new: nn.Module, *, steps: int) -> Transition:
    """Start a transition from the block's activation to `new`. At the end only `new` remains.

    If another transition is in progress, the new one starts from its current state; the caller has to discard the
    earlier transition. Raises `ValueError` for a block without an activation.
    """
    old = block.activation
    if not isinstance(old, nn.Module):
        raise ValueError(f"a block of {block.kind} has no activation")
    block.activation = _blend(old, new)
    return continue_activation(block, steps=steps)


def continue_activation(block: Block, *, steps: int) -> Transition:
    """The transition of a block whose activation is a blend already."""
    blend = block.activation
    assert isinstance(blend, Blend)

    def set_(t: float) -> None:
        blend.t = t

    def done() -> None:
        block.activation = blend.new

    return Transition(steps, set_, done)


def swap_module(model: nn.Module, path: str, new: nn.Module, *, steps: int) -> Transition:
    """The same as `swap_activation`, for the activation at `path` in a user's net.

    Raises `ValueError` in the same cases as `replace_module`.
    """
    old = module_at(model, path)
    replace_module(model, path, _blend(old, new))
    return continue_module(model, path, steps=steps)


def continue_module(model: nn.Module, path: str, *, steps: int) -> Transition:
    """The transition of an activation at `path` in a user's net that is a blend already."""
    blend = module_at(model, path)
    assert isinstance(blend, Blend)

    def set_(t: float) -> None:
        blend.t = t

    def done() -> None:
        if module_at(model, path) is blend:
            replace_module(model, path, blend.new)

    return Transition(steps, set_, done)


def replace_module(model: nn.Module, path: str, new: nn.Module) -> list[str]:
    """Replace the activation at `path` by `new`; returns every path that changed.

    If the same module object is registered under several paths, it is replaced under all of them, since its calls
    cannot be distinguished. Raises `ValueError` if there is no such module, or if it has weights.
    """
    old = module_at(model, path)
    if any(True for _ in old.parameters()):
        raise ValueError(f"{in_words(path)} is a {type(old).__name__}; only an activation can be replaced")
    if old is model:
        raise ValueError(f"the net itself is a {type(old).__name__}; it has no parent module in which to replace it")
    places = [
        (f"{name}.{slot}" if name else slot, parent, slot)
        for name, parent in model.named_modules()
        for slot, child in parent._modules.items()
        if child is old and parent is not new
    ]
    for _, parent, slot in places:
        parent._modules[slot] = new
    return [place for place, _, _ in places]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`. Raises `ValueError` if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f'no module "{path[:60]}" in {type(model).__name__}') from None


def _blend(old: nn.Module, new: nn.Module) -> Blend:
    new.train(old.training)
    return Blend(old, new).train(old.training)


def _input_for(module: nn.Module, z: Tensor) -> Tensor:
    known = is_activation(module) and not isinstance(module, Blend)
    return z if known and not getattr(module, "inplace", False) else z.clone()
