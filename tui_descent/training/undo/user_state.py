"""What a user's loop names to be put back besides model and optimizer: schedulers, scalers, averaged models, counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from tui_descent.training.undo.torch_state import TorchState, contents_of


class HasStateDict(Protocol):
    """As a GradScaler is, and most schedulers that people write."""

    def state_dict(self) -> Any:
        """All that `load_state_dict` needs."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Back to it."""


class UserState:
    """An object known by its `state_dict` alone, called `name` by the loop."""

    def __init__(self, name: str, held: HasStateDict) -> None:
        self._name = name
        self._held = held

    def state(self) -> Any:
        """A copy of its `state_dict`."""
        return copy.deepcopy(self._held.state_dict())

    def restore(self, state: Any) -> None:
        """Load it. Raises `ValueError`, with the object as it was, when it does not load."""
        before = self.state()
        try:
            self._held.load_state_dict(copy.deepcopy(state))
        except Exception as error:
            self._held.load_state_dict(before)
            raise ValueError(f'state["{self._name}"] raised {type(error).__name__}: {error}'[:300]) from error


def user_holders(state: Mapping[str, object]) -> list[TorchState | UserState]:
    """What holds the state of the objects that a loop named.

    Models, optimizers, torch's schedulers, generators, tensors and containers are saved as they are, all others by
    their `state_dict`. Raises `ValueError` for one that has neither.
    """
    torch_objects: list[object] = []
    others: list[UserState] = []
    for name, found in state.items():
        if contents_of(found) is not None:
            torch_objects.append(found)
        elif callable(getattr(found, "state_dict", None)) and callable(getattr(found, "load_state_dict", None)):
            others.append(UserState(name, found))  # type: ignore[arg-type]
        else:
            raise ValueError(
                f'state["{name}"] is a {type(found).__name__}, which has no state_dict and load_state_dict; '
                "allowed: what has both, a dict, list, tensor or torch.Generator (for a plain object: vars(it))"
            )
    return [TorchState(*torch_objects), *others]
