"""One number for the whole state of a run: equal states have equal digests, in another process too."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from tui_descent.training.undo.snapshot import HoldsState, Snapshot
from tui_descent.training.undo.torch_state import TorchState

SIMPLE = (type(None), bool, int, float, complex, str, bytes)


def digest(holders: Iterable[HoldsState]) -> str:
    """SHA-256 over a snapshot of the holders, taken now."""
    return digest_of(Snapshot(holders, segment=0, step=0))


def digest_of(snapshot: Snapshot) -> str:
    """SHA-256 over a snapshot. References to saved objects are hashed by index, all other objects by class."""
    sha = hashlib.sha256()
    indices: dict[int, int] = {}
    for holder, state in snapshot.parts:
        if isinstance(holder, TorchState):
            for found, _ in state:
                indices.setdefault(id(found), len(indices))

    def feed(value: Any) -> None:
        if isinstance(value, SIMPLE):
            sha.update(repr(value).encode())
        elif (index := indices.get(id(value))) is not None:
            sha.update(b"@%d" % index)
        elif isinstance(value, Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
        elif isinstance(value, dict):
            for item in value.items():
                feed(item)
        elif isinstance(value, tuple | list | deque):
            sha.update(b"(%d" % len(value))
            for inner in value:
                feed(inner)
        elif isinstance(value, set):
            sha.update(repr(sorted(map(repr, value))).encode())
        elif type(value).__module__ == "numpy":
            sha.update(value.tobytes())
        else:
            sha.update(type(value).__qualname__.encode())

    for holder, state in snapshot.parts:
        feed(type(holder).__qualname__)
        if isinstance(holder, TorchState):
            for found, held in state:
                feed(type(found).__qualname__)
                feed(held)
        else:
            feed(state)
    return sha.hexdigest()
