"""Transitions, which are changes spread over several updates, and the parameters that a change added or removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterChanges:
    """The parameters, by name, that a change of the net has added and removed. The optimizer has to be updated
    accordingly.
    """

    added: dict[str, nn.Parameter] = field(default_factory=dict)
    removed: dict[str, nn.Parameter] = field(default_factory=dict)


class Transition:
    """A change spread over `steps` updates.

    `advance` is called before each forward pass. It calls `set_(t)`, with t from 1/steps to 1, and finally `done()`.
    Both functions change only attributes of modules and skips, which a snapshot saves with the model. So the only state
    of the transition itself is `steps_done`. `terms` are plain values, from which another process can make the same
    transition for a net in the same state.
    """

    def __init__(
        self,
        steps: int,
        set_: Callable[[float], None],
        done: Callable[[], None],
        *,
        terms: dict[str, Any] | None = None,
    ) -> None:
        self.steps, self.steps_done = steps, 0
        self.terms = terms or {}
        self._set, self._done = set_, done

    def state(self) -> int:
        """The number of updates so far."""
        return self.steps_done

    def restore(self, state: int) -> None:
        """Restore what `state` returned. The changes made by the transition are part of the model's state."""
        self.steps_done = state

    def advance(self) -> bool:
        """Continue by one update. Returns True when the transition is complete."""
        self.steps_done += 1
        if self.steps_done < self.steps:
            self._set(self.steps_done / self.steps)
            return False
        self.finish()
        return True

    def show(self, t: float) -> None:
        """Set the net to the state at `t`, without advancing."""
        self._set(t)

    def finish(self) -> None:
        """Complete the transition at once."""
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
