"""The private parts of torch's optimizers that this package relies on. No other file touches them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

# torch wraps every `step` method in a function that runs the step hooks; all these wrappers share one code object.
_HOOKED_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def step_depth(*optimizers: object) -> int:
    """How many hooked `step` calls of these optimizers are on the stack. There are two if a subclass calls
    `super().step()`, or if an optimizer calls the one that it wraps. Step hooks run once per hooked call. If a step
    raises, its post-hooks do not run, so a counter in the hooks would then be wrong. Only the call stack shows whether
    a call is nested, or is a new step after one that raised.
    """
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # The first positional argument of torch's wrapper is the optimizer.
        if frame.f_code is _HOOKED_STEP and (args := frame.f_locals["args"]):
            count += any(args[0] is optimizer for optimizer in optimizers)
        frame = frame.f_back
    return count


@contextmanager
def without_step_hooks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Suspend all step hooks of the optimizer, including those of other code, and restore them in the same order.

    torch's public API can add and remove a hook, but not suspend one.
    """
    tables: list[dict[int, Any]] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    saved = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, saved, strict=True):
            table.update(hooks)


def compiler_loaded() -> bool:
    """Whether torch's compiler is loaded. `torch.compile` loads it, which takes seconds."""
    return "torch._dynamo" in sys.modules


def not_compiled(function: Function) -> Function:
    """The function, marked to be left out when torch compiles an optimizer step. If the compiler is not loaded, nothing
    is done, because marking a function would load it.
    """
    if not compiler_loaded():
        return function
    marked: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return marked


def uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled modules run their ordinary code. If the compiler is not loaded, there is nothing to
    do.
    """
    return torch.compiler.set_stance("force_eager") if compiler_loaded() else nullcontext()


class ScalerListener:
    """Is called before and after each `GradScaler.step`. If a gradient has overflowed, the scaler does not step the
    optimizer. Then no hook of the optimizer runs, and torch reports the skipped update nowhere else. While there are
    listeners, the class has a replacement for `step` that calls the listeners and the original.
    """

    def before_scaler_step(self, optimizer: object) -> None:
        """Called before a scaler steps `optimizer`, or skips its update."""

    def after_scaler_step(self) -> None:
        """Called after the scaler's `step`, unless it raised an exception."""

    def listen_to_scalers(self) -> None:
        """Call the methods of `listener` from now on."""
        if self not in _listeners:
            _listeners.append(self)
        scaler: Any = torch.amp.GradScaler
        if scaler.step is not _heard_step:
            _own_step.append(scaler.step)
            scaler.step = functools.update_wrapper(_heard_step, scaler.step)

    def ignore_scalers(self) -> None:
        """Stop calling the methods of `listener`."""
        if self in _listeners:
            _listeners.remove(self)
        scaler: Any = torch.amp.GradScaler
        # If other code has replaced the method meanwhile, it may still call ours, which then does nothing.
        if not _listeners and scaler.step is _heard_step:
            scaler.step = _own_step.pop()


_listeners: list[ScalerListener] = []
_own_step: list[Callable[..., Any]] = []


def _heard_step(scaler: torch.amp.GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    for listener in _listeners:
        listener.before_scaler_step(optimizer)
    result = _own_step[-1](scaler, optimizer, *args, **kwargs)
    for listener in _listeners:
        listener.after_scaler_step()
    return result
