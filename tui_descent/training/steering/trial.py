"""Tries a user's net after a change, on the inputs of one of its last steps, before the change is acknowledged."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks
from tui_descent.training.several_nets import whole_nets
from tui_descent.training.steering.surgery.observer import tensors_in
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.torch_state import unchanged

MAX_BYTES = 64 * 2**20  # larger inputs are not kept
KEEP_S = 1.0  # inputs that are older than this are replaced by newer ones


@dataclass(frozen=True, slots=True)
class _Pass:
    """The inputs of one forward pass. `autocast` is the device type and dtype, None without autocast."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, torch.dtype] | None


class Trial:
    """Runs a net on inputs that it has seen. The run leaves no trace: buffers, attributes, random numbers are restored.

    `listen` keeps the inputs of the next forward pass of the whole net with gradients; with a dict or list of nets, it
    keeps those of each net.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._nets = list(whole_nets(model).values())
        self._passes: dict[int, _Pass] = {}  # by the net's index
        self._missing: set[int] = set()  # the nets whose inputs are still to be kept
        self._next_s = 0.0
        self._hooks = ModuleHooks()
        for index, net in enumerate(self._nets):
            self._hooks.on_output(net, partial(self._after, index), "trying changes on the last inputs")

    def listen(self) -> None:
        """Keep the inputs of the next pass, if there are none of the last second. Call `stop_listening` after it."""
        if time.monotonic() < self._next_s:
            return
        self._missing = set(range(len(self._nets)))
        self._hooks.attach()

    def stop_listening(self) -> None:
        """Remove the hook."""
        self._hooks.detach()

    def forget(self) -> None:
        """Free the inputs."""
        self.stop_listening()
        self._passes.clear()

    def run(self, model: nn.Module | None = None) -> list[Tensor] | None:
        """The floating-point outputs of the net on the kept inputs; None if there are no inputs. `model` is a copy to
        run in place of the net. Raises what the net raises.
        """
        model = self._model if model is None else model
        # In distributed training the other processes would have to run the net too.
        if not self._passes or _is_distributed():
            return None
        outputs: list[Tensor] = []
        random_state = RandomState().state()
        try:
            with unchanged(model):
                for index, net in enumerate(whole_nets(model).values()):
                    if (seen := self._passes.get(index)) is not None:
                        outputs += _tensors(self._forward(net, seen))
        finally:
            RandomState().restore(random_state)
        return outputs

    def _forward(self, net: nn.Module, seen: _Pass) -> Any:
        autocast: AbstractContextManager[Any] = nullcontext()
        if seen.autocast is not None:
            autocast = torch.autocast(seen.autocast[0], dtype=seen.autocast[1])
        with autocast, torch.enable_grad():  # a forward pass may compute gradients
            return net(*seen.args, **seen.kwargs)

    def _after(self, index: int, args: Args, kwargs: Kwargs, output: Any) -> None:
        if index not in self._missing:
            return
        self._missing.discard(index)
        self._next_s = time.monotonic() + KEEP_S
        try:
            inputs = args, kwargs
            if sum(t.nbytes for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)) <= MAX_BYTES:
                args, kwargs = pytree.tree_map_only(Tensor, _detached, inputs)
                device = next((p.device.type for p in self._nets[index].parameters()), "cpu")
                on = torch.is_autocast_enabled(device)
                self._passes[index] = _Pass(args, kwargs, (device, torch.get_autocast_dtype(device)) if on else None)
        except Exception:  # noqa: BLE001 - without inputs a change is not tried
            self._passes.pop(index, None)


def problem(before: list[Tensor], after: list[Tensor]) -> str | None:
    """Why a change must be undone, given the outputs before and after it; None if it can stay."""
    if all(bool(t.isfinite().all()) for t in before) and not all(bool(t.isfinite().all()) for t in after):
        return "the outputs would be non-finite"
    return None


def _tensors(output: Any) -> list[Tensor]:
    return [t.detach() for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]


def _detached(x: Tensor) -> Tensor:
    """The same numbers without the graph. Copied only if the result would otherwise keep the input in memory."""
    return x.detach().requires_grad_(x.requires_grad) if x.requires_grad else x


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
