"""The private parts of torch that this package relies on, each with its reason. No other file touches one."""

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

    Step hooks run once per hooked call. The stack is the only thing that tells a nested call from a new step after one
    that raised: a step that raises never reaches its post-hooks, so a counter kept by the hooks alone goes wrong there.
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
    """Run `optimizer.step()` without any step hook inside; the same hooks are back afterwards, in the same order.

    torch can add and remove single hooks but not suspend them, and the hooks may be anybody's.
    """
    tables: list[dict[int, Any]] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
