"""The private parts of torch's optimizers that this package relies on. No other file touches them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

# torch wraps every `step` method in a function that runs the step hooks; all these wrappers share one code object.
_HOOKED_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def step_depth(optimizer: torch.optim.Optimizer) -> int:
    """How many of this optimizer's hooked `step` calls are on the stack: two where a subclass calls `super().step()`.

    Step hooks run once per hooked call. If a step raises, its post-hooks do not run, so a counter kept by the hooks
    alone would then be wrong. Only the call stack distinguishes a nested call from a new step after one that raised.
    """
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # The first positional argument of torch's wrapper is the optimizer.
        count += frame.f_code is _HOOKED_STEP and frame.f_locals["args"][:1] == (optimizer,)
        frame = frame.f_back
    return count


@contextmanager
def without_step_hooks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Suspend all step hooks of the optimizer, whoever registered them, and restore them in the same order.

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
