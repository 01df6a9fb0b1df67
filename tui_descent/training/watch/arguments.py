"""Checks the optimizers that were passed to `watch()`, and gives them names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tui_descent.training.optim.wrapped_optimizers import unwrap
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer

NAME = re.compile(r"[\w.-]+")


def listed(optimizer: object) -> dict[str, object]:
    """The optimizers that were passed, by name. A dict gives their names, in a list they are `0`, `1`, …, and a single
    one has no name.
    """
    if isinstance(optimizer, Mapping):
        return {str(name): one for name, one in optimizer.items()}
    if isinstance(optimizer, list | tuple):
        return {str(n): one for n, one in enumerate(optimizer)}
    return {"": optimizer}


def steered_optimizers(optimizer: object) -> list[SteeredOptimizer]:
    """The optimizers inside what was passed to `watch()`: one optimizer, or a dict or list of them.

    Raises `ValueError` for an optimizer whose updates cannot be watched.
    """
    found: list[SteeredOptimizer] = []
    for name, one in listed(optimizer).items():
        if name and not NAME.fullmatch(name):
            raise ValueError(f'an optimizer cannot be called "{name[:40]}"; allowed: letters, digits, "_", "-" and "."')
        inner = unwrap(one)
        if any(inner is other.optimizer for other in found):
            raise ValueError(f"watch() was given the same {type(inner).__name__} twice")
        found.append(SteeredOptimizer(inner, name))
    if not found:
        raise ValueError("watch() was given no optimizer")
    return found
