"""The exact state of a training loop before one update, as a list: each object that holds state, and its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from tui_descent.training.undo.torch_state import TorchState, reachable
from tui_descent.training.undo.user_state import UserState


class HoldsState(Protocol):
    """An object whose state belongs to a snapshot."""

    def state(self) -> Any:
        """What `restore` needs, as often as wanted: nothing in it changes with the object."""

    def restore(self, state: Any, /) -> None:
        """Be as when `state` was taken."""


class Snapshot:
    """The state before update `step` of `segment`. Every object stays the same one, its contents return."""

    def __init__(self, holders: Iterable[HoldsState], *, segment: int, step: int) -> None:
        self.segment = segment
        self.step = step
        self.parts = [(holder, holder.state()) for holder in holders]
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors())

    def restore(self, *, user_state: bool = True) -> None:
        """Put it all back, as often as wanted; without `user_state`, all but what is known by its `state_dict` alone.

        Raises `ValueError`, with nothing changed, when one of those does not load it.
        """
        if user_state:
            self._load_user_state()
        for holder, state in self.parts:
            if not isinstance(holder, UserState):
                holder.restore(state)

    def has_finite_weights(self) -> bool:
        """Whether every weight in it is finite."""
        saved = ((p, held) for holder, state in self.parts if isinstance(holder, TorchState) for p, held in state)
        return all(bool(held[0].isfinite().all()) for p, held in saved if isinstance(p, nn.Parameter))

    def _load_user_state(self) -> None:
        """First, since foreign code may refuse: what was loaded by then is loaded back."""
        loaded: list[tuple[UserState, Any]] = []
        try:
            for holder, state in self.parts:
                if isinstance(holder, UserState):
                    before = holder.state()
                    holder.restore(state)
                    loaded.append((holder, before))
        except ValueError:
            for holder, before in loaded:
                holder.restore(before)
            raise

    def _tensors(self) -> Iterator[Tensor]:
        """The copies of model, optimizer and what the user named."""
        for holder, state in self.parts:
            if isinstance(holder, TorchState):
                yield from (held[0] for found, held in state if isinstance(found, Tensor))
            elif isinstance(holder, UserState):
                yield from (found for found, _ in reachable(state) if isinstance(found, Tensor))
