"""A snapshot: the exact state of a training loop before one update, as a list of objects and their states.

Model and optimizer, with state such as Adam's averages, are saved and restored by `torch_state.py`.
`KnobContext.holders` (`steering/knobs/context.py`) lists the objects that a snapshot covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from tui_descent.instruments.not_measured import all_finite, size_in_bytes
from tui_descent.training.undo.torch_state import TorchState, reachable
from tui_descent.training.undo.user_state import UserState


class HoldsState(Protocol):
    """An object whose state belongs to a snapshot."""

    def state(self) -> Any:
        """A copy of the current state, for `restore`. The copy does not change when the object changes."""

    def restore(self, state: Any, /) -> None:
        """Return to `state`. May be called more than once with the same state."""


class Snapshot:
    """The state before update `step` of `segment`. `restore` keeps every object and replaces its contents."""

    def __init__(self, holders: Iterable[HoldsState], *, segment: int, step: int) -> None:
        self.segment = segment
        self.step = step
        self.parts = [(holder, holder.state()) for holder in holders]
        self.nbytes = sum(size_in_bytes(tensor) for tensor in self._tensors())

    def restore(self, *, user_state: bool = True) -> None:
        """Restore all states; may be called more than once. With `user_state=False`, `UserState` objects are skipped.

        Raises `ValueError`, with nothing changed, if a user's `load_state_dict` raises.
        """
        if user_state:
            self._load_user_state()
        for holder, state in self.parts:
            if not isinstance(holder, UserState):
                holder.restore(state)

    def has_finite_weights(self) -> bool:
        """Whether every saved parameter is finite."""
        states = (state for holder, state in self.parts if isinstance(holder, TorchState))
        weights = (saved[0] for state in states for obj, saved in state if isinstance(obj, nn.Parameter))
        return all(weight is None or all_finite(weight) for weight in weights)

    @property
    def loss(self) -> float | None:
        """The mean of the last losses before the snapshot; None if there were none."""
        losses = [loss for _, state in self.parts if isinstance(state, dict) for loss in state.get("losses", ())]
        return sum(losses) / len(losses) if losses else None

    def _load_user_state(self) -> None:
        """Load user state before everything else, because a user's code may raise. If it does, undo the loads made so
        far.
        """
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
        """The saved copies of all tensors in model, optimizer and user state."""
        for holder, state in self.parts:
            if isinstance(holder, TorchState):
                yield from (saved[0] for obj, saved in state if isinstance(obj, Tensor) and saved[0] is not None)
            elif isinstance(holder, UserState):
                yield from (obj for obj, _ in reachable(state) if isinstance(obj, Tensor))
