"""The state of the process's global random number generators: torch's on every device, Python's and NumPy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch

Getter = Callable[[], Any]
Setter = Callable[[Any], None]


class RandomState:
    """The global generators as part of a snapshot."""

    def state(self) -> dict[str, Any]:
        """Each generator's state, by name."""
        return {name: get() for name, (get, _) in _generators().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Set each generator to its state."""
        generators = _generators()
        for name, generator_state in state.items():
            _, set_state = generators[name]
            set_state(generator_state)


def _generators() -> dict[str, tuple[Getter, Setter]]:
    generators: dict[str, tuple[Getter, Setter]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "python": (random.getstate, random.setstate),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    if torch.backends.mps.is_available():
        generators["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    if (numpy := sys.modules.get("numpy")) is not None:  # not imported here, as a run may not use it
        generators["numpy"] = (numpy.random.get_state, numpy.random.set_state)
    return generators
