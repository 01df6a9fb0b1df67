"""Changes to the network itself, each with a stated change of function, made between two steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tui_descent.training.nets.block import Block, Skip

RESIDUAL_STEPS = 20
BLEND_STEPS = 50


class Blend(nn.Module):
    """(1 − t)·old(z) + t·new(z): exactly `old` at t = 0."""

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        self.old, self.new, self.t = old, new, 0.0

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise, any shape."""
        if self.t == 0.0:
            old: Tensor = self.old(z)
            return old
        mixed: Tensor = (1 - self.t) * self.old(z) + self.t * self.new(z)
        return mixed


class Transition:
    """A change spread over `steps` updates: `advance` before each forward pass, `set(t)` with t from 1/steps to 1."""

    def __init__(self, steps: int, set_: Callable[[float], None], done: Callable[[], None]) -> None:
        self._steps, self._made, self._set, self._done = steps, 0, set_, done

    def advance(self) -> bool:
        """One update further; True when the end form is reached and nothing of the way there is left."""
        self._made += 1
        if self._made < self._steps:
            self._set(self._made / self._steps)
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Go to the end form at once."""
        self._set(1.0)
        self._done()


def open_skip(block: Block, scale: float, *, steps: int) -> Transition:
    """A skip that opens: the function is unchanged at first, x + scale·f(x) at the end."""
    skip = block.skip if block.skip is not None else Skip(scale, gate=0.0)
    start, old_scale = skip.gate, skip.scale
    block.skip = skip

    def set_(t: float) -> None:
        skip.gate = start + t * (1 - start)
        skip.scale = old_scale + t * (scale - old_scale)

    return Transition(steps, set_, lambda: None)


def close_skip(block: Block, *, steps: int) -> Transition:
    """A skip that closes, to f(x) alone; the block is plain again at the end."""
    assert block.skip is not None
    skip, start = block.skip, block.skip.gate

    def set_(t: float) -> None:
        skip.gate = start * (1 - t)

    def done() -> None:
        block.skip = None

    return Transition(steps, set_, done)


def swap_activation(block: Block, new: nn.Module, *, steps: int) -> Transition:
    """A blend from the block's activation to `new`, which alone stands there at the end."""
    blend = Blend(block.activation, new)
    block.activation = blend

    def set_(t: float) -> None:
        blend.t = t

    def done() -> None:
        block.activation = new

    return Transition(steps, set_, done)
