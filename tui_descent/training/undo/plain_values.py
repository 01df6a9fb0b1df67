"""Plain values: what a snapshot's file may contain, which is containers, numbers, strings and tensors on the CPU."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.training.undo.snapshot_file import SnapshotError

_MAX_DEPTH = 40


def plain(value: object, *, what: str = "a snapshot", depth: int = 0) -> Any:
    """A copy of `value`: tensors are copied to the CPU, containers become dicts, lists and tuples.

    Raises `SnapshotError` for any other object; `what` says in the message what holds it.
    """
    if depth > _MAX_DEPTH:
        raise SnapshotError(f"{what} has containers that are nested too deeply")
    match value:
        case None | bool() | str():
            return value if value is None or isinstance(value, bool) else str(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Tensor():
            return _on_host(value, what)
        case torch.Generator():
            return value.get_state()
        case tuple():
            return tuple(plain(one, what=what, depth=depth + 1) for one in value)
        case list() | deque() | set():
            return [plain(one, what=what, depth=depth + 1) for one in value]
        case dict() if type(value) in (dict, OrderedDict, defaultdict):
            return {_key(key, what): plain(one, what=what, depth=depth + 1) for key, one in value.items()}
        case torch.dtype() | torch.device():
            return str(value)
    raise SnapshotError(f"{what} holds an object of class {type(value).__name__}")


def _on_host(tensor: Tensor, what: str) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        raise SnapshotError(f"{what} holds a {type(tensor).__name__} that cannot be saved")
    return tensor.detach().to("cpu", copy=True)


def _key(key: object, what: str) -> Any:
    if isinstance(key, bool | int | float | str) or key is None:
        return plain(key)
    if isinstance(key, tuple):
        return tuple(_key(one, what) for one in key)
    raise SnapshotError(f"{what} has an object of class {type(key).__name__} as a key")
