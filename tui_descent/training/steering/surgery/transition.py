"""A change spread over several updates, and the parameters that a change added or removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterChanges:
    """Parameters by name that a change of the net added and removed; the optimizer has to be adapted to it."""

    added: dict[str, nn.Parameter] = field(default_factory=dict)
    removed: dict[str, nn.Parameter] = field(default_factory=dict)


class Transition:
    """A change spread over `steps` updates: `advance`, called before each forward pass, calls `set_(t)`.

    t goes from 1/steps to 1; `done` is called at the end. `steps_done` is the only state of its own: `set_` and `done`
    change attributes of modules and skips.
    """

    def __init__(self, steps: int, set_: Callable[[float], None], done: Callable[[], None]) -> None:
        self.steps, self.steps_done = steps, 0
        self._set, self._done = set_, done

    def state(self) -> int:
        """The number of updates so far."""
        return self.steps_done

    def restore(self, state: int) -> None:
        """Restore what `state` returned. What the transition has changed belongs to the model's state."""
        self.steps_done = state

    def advance(self) -> bool:
        """Continue by one update; True when the change is complete."""
        self.steps_done += 1
        if self.steps_done < self.steps:
            self._set(self.steps_done / self.steps)
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Complete the change at once."""
        self._set(1.0)
        self._done()


def parameter_changes(model: nn.Module, before: dict[str, nn.Parameter]) -> ParameterChanges:
    """Which parameter objects were added and removed since `before`."""
    now = dict(model.named_parameters())
    old, new = {id(p) for p in before.values()}, {id(p) for p in now.values()}
    return ParameterChanges(
        added={name: p for name, p in now.items() if id(p) not in old},
        removed={name: p for name, p in before.items() if id(p) not in new},
    )
