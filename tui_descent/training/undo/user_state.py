"""The objects that a user loop passes as `state=`. An undo restores them in addition to model and optimizer.

Examples are schedulers, GradScalers, averaged models and counters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from tui_descent.training.undo.torch_state import TorchState, contents_of


class HasStateDict(Protocol):
    """An object with `state_dict`, such as a GradScaler or a user's own scheduler."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class UserState:
    """Saves one object by its `state_dict`. `name` is its key in `state=`."""

    def __init__(self, name: str, obj: HasStateDict) -> None:
        self._name = name
        self._obj = obj

    def state(self) -> Any:
        """A copy of the object's `state_dict`."""
        return copy.deepcopy(self._obj.state_dict())

    def restore(self, state: Any) -> None:
        """Load `state`. Raises `ValueError`, with the object unchanged, if `load_state_dict` raises."""
        before = self.state()
        try:
            self._obj.load_state_dict(copy.deepcopy(state))
        except Exception as error:
            self._obj.load_state_dict(before)
            raise ValueError(f'state["{self._name}"] raised {type(error).__name__}: {error}'[:300]) from error


def user_holders(state: Mapping[str, object]) -> list[TorchState | UserState]:
    """Create the objects that save and restore everything in `state`, which a user loop passed to `watch()`.

    Models, optimizers, torch's schedulers, generators, tensors and containers are saved by copying their contents, all
    other objects by their `state_dict`. Raises `ValueError` if one of these other objects has none.
    """
    torch_objects: list[object] = []
    others: list[UserState] = []
    for name, obj in state.items():
        if contents_of(obj) is not None:
            torch_objects.append(obj)
        elif callable(getattr(obj, "state_dict", None)) and callable(getattr(obj, "load_state_dict", None)):
            others.append(UserState(name, obj))  # type: ignore[arg-type]
        else:
            raise ValueError(
                f'state["{name}"] is a {type(obj).__name__}, which has no state_dict and load_state_dict; '
                "allowed: an object with both, a dict, list, tensor or torch.Generator (else try vars(object))"
            )
    return [TorchState(*torch_objects), *others]
