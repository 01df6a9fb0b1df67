"""What a user's loop names beside net and optimizer, to go back with them: schedulers, scalers, counts."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType

from torch.optim.lr_scheduler import LRScheduler

from tui_descent.training.undo.snapshot import Stateful, has_contents


def roots_of(state: Mapping[str, object]) -> list[object]:
    """What a moment is to be taken of for the objects that a loop named.

    Nets, optimizers, torch's schedulers, generators, tensors and containers are kept as they are, all others by their
    `state_dict`. Raises `ValueError` for one that has neither.
    """
    roots: list[object] = []
    for name, found in state.items():
        if has_contents(found):
            roots.append(found)
            if isinstance(found, LRScheduler):
                roots += _counting(found)
        elif callable(getattr(found, "state_dict", None)) and callable(getattr(found, "load_state_dict", None)):
            roots.append(Stateful(name, found))  # type: ignore[arg-type]
        else:
            raise ValueError(
                f'state["{name}"] is a {type(found).__name__}, which has no state_dict and load_state_dict; '
                "allowed: what has both, a dict, list, tensor or torch.Generator (for a plain object: vars(it))"
            )
    return roots


def _counting(scheduler: LRScheduler) -> list[object]:
    """What LambdaLR's and MultiplicativeLR's factors count on their own, where they are objects and not functions."""
    factors = getattr(scheduler, "lr_lambdas", ())
    return [vars(factor) for factor in factors if hasattr(factor, "__dict__") and not isinstance(factor, FunctionType)]
