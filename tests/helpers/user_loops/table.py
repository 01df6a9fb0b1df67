"""The table of user loops, and the stand-in for `watch` with which they train unwatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

STEPS = 6
# `watch(model, optimizer)` returns a context manager with `step` and `log`. A loop returns its net, or all its nets.
Watching = Callable[..., Any]
UserLoop = Callable[[Watching], nn.Module]
LOOPS: dict[str, UserLoop] = {}


def user_loop(loop: UserLoop) -> UserLoop:
    """Add a loop to the table."""
    LOOPS[loop.__name__] = loop
    return loop
