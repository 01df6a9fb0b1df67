"""The global random numbers: torch's on every device, Python's and NumPy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch


class RandomState:
    """The generators that a process has one of."""

    def state(self) -> dict[str, Any]:
        """Where each generator is, by name."""
        return {name: get() for name, (get, _) in _generators().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        generators = _generators()
        for name, where in state.items():
            generators[name][1](where)


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "python": (random.getstate, random.setstate),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    if torch.backends.mps.is_available():
        found["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    if (numpy := sys.modules.get("numpy")) is not None:
        found["numpy"] = (numpy.random.get_state, numpy.random.set_state)
    return found
