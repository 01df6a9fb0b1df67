"""The objects that a user loop passes as `state=`. An undo and a resumption restore them in addition to model and
optimizer.

Examples are schedulers, GradScalers, averaged models and counters.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from tui_descent.training.undo.plain_values import plain
from tui_descent.training.undo.snapshot_file import SnapshotError
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


def save_user_state(state: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is in `state` as plain values, for a snapshot on disk; and what cannot be saved, with the reason."""
    saved, left_out = {}, {}
    for name, obj in state.items():
        try:
            saved[name] = plain(obj if _is_saved_itself(obj) else obj.state_dict(), what="it")  # type: ignore[attr-defined]
        except SnapshotError as error:
            left_out[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a user's `state_dict`
            left_out[name] = f"{type(error).__name__}: {error}"[:200]
    return saved, left_out


def load_user_state(state: Mapping[str, object], saved: Mapping[str, Any]) -> list[str]:
    """Restore what `save_user_state` returned; returns the names of what could not be restored, with the reason."""
    failed = [f'state["{name[:40]}"] (it was not saved)' for name in state if name not in saved]
    for name, obj in state.items():
        if name in saved:
            try:
                _load(obj, saved[name])
            except Exception as error:  # noqa: BLE001 - a user's `load_state_dict`
                failed.append(f'state["{name[:40]}"] ({type(error).__name__}: {error})'[:200])
    return failed


def _is_saved_itself(obj: object) -> bool:
    """Whether it is saved by its contents. All other objects are saved by their `state_dict`."""
    return isinstance(obj, Tensor | torch.Generator | dict | list | set | deque)


@torch.no_grad()
def _load(obj: Any, saved: Any) -> None:
    match obj:
        case Tensor():
            obj.copy_(saved)
        case torch.Generator():
            obj.set_state(saved)
        case dict():
            values = {key: _loaded(obj.get(key), value) for key, value in saved.items()}
            obj.clear()
            obj.update(values)
        case list() | deque():
            items = [_loaded(old, value) for old, value in zip_longest(obj, saved)][: len(saved)]
            obj.clear()
            obj.extend(items)
        case set():
            obj.clear()
            obj.update(saved)
        case _:
            obj.load_state_dict(saved)


def _loaded(old: Any, saved: Any) -> Any:
    """The saved value; if `old` is a tensor or a container of the same kind, that object with the saved contents."""
    if isinstance(old, Tensor) and isinstance(saved, Tensor) and old.shape != saved.shape:
        return saved
    if not isinstance(old, Tensor | dict | list | deque | set):
        return saved
    _load(old, saved)
    return old
