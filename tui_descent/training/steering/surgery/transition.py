"""A change spread over several updates, and what a change did to a net's parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterChanges:
    """Parameters by name that a change brought and took away, so that the caller can put the optimizer right."""

    added: dict[str, nn.Parameter] = field(default_factory=dict)
    removed: dict[str, nn.Parameter] = field(default_factory=dict)


class Transition:
    """A change spread over `steps` updates: `advance` before each forward pass, `set(t)` with t from 1/steps to 1.

    `made` counts the updates so far; all else that it changes are attributes of modules and skips.
    """

    def __init__(self, steps: int, set_: Callable[[float], None], done: Callable[[], None]) -> None:
        self.steps, self.steps_done = steps, 0
        self._set, self._done = set_, done

    def state(self) -> int:
        """How far it is."""
        return self.steps_done

    def restore(self, state: int) -> None:
        """Back to it; what it has changed is the model's state."""
        self.steps_done = state

    def advance(self) -> bool:
        """One update further; True when the end form is reached and nothing of the way there is left."""
        self.steps_done += 1
        if self.steps_done < self.steps:
            self._set(self.steps_done / self.steps)
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Go to the end form at once."""
        self._set(1.0)
        self._done()


def parameter_changes(model: nn.Module, before: dict[str, nn.Parameter]) -> ParameterChanges:
    """What came and went since `before`, by identity."""
    now = dict(model.named_parameters())
    old, new = {id(p) for p in before.values()}, {id(p) for p in now.values()}
    return ParameterChanges(
        added={name: p for name, p in now.items() if id(p) not in old},
        removed={name: p for name, p in before.items() if id(p) not in new},
    )
