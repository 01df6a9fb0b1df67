"""The undo stack of one run: a snapshot before each intervention, at the start and now and then, within a budget."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import SnapshotTaken
from tui_descent.training.steering.knobs.context import KnobContext, Turned
from tui_descent.training.undo.memory_budget import bytes_needed, default_budget
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import HoldsState, Snapshot

PERIOD_S = 30.0
PERIODIC_SHARE = 0.01  # of the time that periodic snapshots may take
# Knobs that do not change what is learnt: no undo of their own.
WITHOUT_UNDO = frozenset({"pace"})


@dataclass(slots=True, eq=False)
class UndoEntry:
    """One intervention: the snapshot `before` it and, once undone, the one that a redo restores, `after` it.

    Without a snapshot only the knob's value is restored, by the turns `back` and `forth`; `why` is the reason.
    """

    id: int
    step: int
    label: str
    back: tuple[TurnKnob, ...]
    forth: tuple[TurnKnob, ...]
    before: Snapshot | None
    after: Snapshot | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What an undo (`back`) or a redo has to do: restore the `snapshot`, or make the `turns` where there is none."""

    what: str
    back: bool
    entry: UndoEntry | None = None
    snapshot: Snapshot | None = None
    turns: tuple[TurnKnob, ...] = ()


@dataclass
class UndoStack:
    """The snapshots of one run. `user_state` holds what a user loop named; a scenario run also restores `randoms`.

    `asked` is the memory for all snapshots in bytes; None for a tenth of what is free on the model's device.
    """

    context: KnobContext
    user_state: tuple[HoldsState, ...] = ()
    asked: int | None = None
    randoms: bool = True
    _done: list[UndoEntry] = field(default_factory=list)  # in force, oldest first
    _undone: list[UndoEntry] = field(default_factory=list)
    _periodic: list[Snapshot] = field(default_factory=list)
    _current: Snapshot | None = None  # the state is exactly this one: just restored, no update or turn since
    _period_ends_s: float = 0.0
    _why_none: str = ""  # why the last `take` gave none

    @functools.cached_property
    def budget(self) -> int:
        """Bytes for all snapshots. Measured when the first one is due: by then training has taken its memory."""
        if self.asked is not None:
            return self.asked
        return default_budget(next((p.device for p in self.context.model.parameters()), torch.device("cpu")))

    @property
    def nbytes(self) -> int:
        """Memory of all snapshots."""
        return sum(snapshot.nbytes for snapshot in self._all())

    @property
    def in_force(self) -> tuple[int, ...]:
        """The ids of the interventions that an undo would take back, oldest first."""
        return tuple(entry.id for entry in self._done)

    @property
    def due(self) -> bool:
        """Whether a periodic snapshot is due."""
        return time.monotonic() >= self._period_ends_s

    def holders(self) -> list[HoldsState]:
        """What a snapshot is taken of."""
        return [*self.context.holders(), *self.user_state, *((RandomState(),) if self.randoms else ())]

    def take(self, segment: int, step: int) -> Snapshot | None:
        """A snapshot of now; None where it does not fit into the budget."""
        if self._current is not None:
            return self._current
        needed = bytes_needed(self.context.model, self.context.optimizer)
        try:
            if needed <= self.budget:
                snapshot = Snapshot(self.holders(), segment=segment, step=step)
                if (needed := snapshot.nbytes) <= self.budget:
                    return snapshot
            self._why_none = f"the exact state takes {_mb(needed)}, the undo budget is {_mb(self.budget)}"
        except (MemoryError, torch.OutOfMemoryError):
            self._why_none = f"there is no memory left for the exact state, which takes {_mb(needed)}"
        return None

    def take_periodic(self, segment: int, step: int) -> Snapshot | None:
        """A periodic snapshot, where one is due and fits."""
        start_s = time.monotonic()
        if start_s < self._period_ends_s:
            return None
        snapshot = self.take(segment, step)
        end_s = time.monotonic()
        self._period_ends_s = end_s + max(PERIOD_S, (end_s - start_s) / PERIODIC_SHARE)
        if snapshot is None:
            return None
        self._periodic.append(snapshot)
        self._evict(None)
        return snapshot if snapshot in self._periodic else None

    def event(self, reason: str, segment: int, step: int) -> SnapshotTaken:
        """The event of a snapshot taken there."""
        return SnapshotTaken(
            segment=segment, step=step, reason=reason, used_bytes=self.nbytes, budget_bytes=self.budget
        )

    def push(self, entry: UndoEntry) -> str | None:
        """An intervention was made; what had been undone can no longer be redone.

        Returns a note where an undo will not restore the exact state.
        """
        self._undone.clear()
        self._done.append(entry)
        self._current = None
        if entry.before is None:
            entry.why = self._why_none
            return f"undo restores the value only: {entry.why}"
        self._evict(entry.before)
        return None

    def state_changed(self) -> None:
        """The state changes from here on: it is no longer that of the snapshot just restored."""
        self._current = None

    def undo(self, segment: int, step: int, *, broken: bool) -> Move:
        """To before the last intervention in force; where numbers are `broken` to the last good snapshot, if later.

        Raises `ValueError` when there is nothing to undo.
        """
        last = self._done[-1] if self._done else None
        good = self.last_good() if broken else None
        if good is not None and (last is None or (good is not last.before and good.step >= last.step)):
            return self._move_to(good, "the steps since the last good snapshot", back=True)
        if last is None:
            raise ValueError("nothing to undo: no intervention is in force")
        if last.before is None:
            self._undone.append(self._done.pop())
            return Move(what=f"{last.label}; by value only: {last.why}", back=True, entry=last, turns=last.back)
        last.after = self.take(segment, step)
        self._undone.append(self._done.pop())
        return self._move_to(last.before, last.label, back=True, entry=last)

    def redo(self) -> Move:
        """To where the last undo was made. Raises `ValueError` when nothing was undone."""
        if not self._undone:
            raise ValueError("nothing to redo")
        entry = self._undone.pop()
        self._done.append(entry)
        after, entry.after = entry.after, None
        if after is None:
            return Move(what=f"{entry.label}; by value only", back=False, entry=entry, turns=entry.forth)
        return self._move_to(after, entry.label, back=False, entry=entry)

    def cancel(self, move: Move) -> None:
        """The move failed: as if it had not been asked for."""
        self._current = None
        if move.entry is None:
            return
        if move.back:
            move.entry.after = None
            self._done.append(self._undone.pop())
        else:
            move.entry.after = move.snapshot
            self._undone.append(self._done.pop())

    def last_good(self) -> Snapshot | None:
        """The newest snapshot whose weights are finite."""
        known = [*self._periodic, *(entry.before for entry in self._done if entry.before is not None)]
        return next((s for s in sorted(known, key=lambda s: -s.step) if s.has_finite_weights()), None)

    def close(self) -> None:
        """The run is over: free all snapshots."""
        self._current = None
        for held in (self._done, self._undone, self._periodic):
            held.clear()

    def _move_to(self, snapshot: Snapshot, what: str, *, back: bool, entry: UndoEntry | None = None) -> Move:
        self._periodic = [s for s in self._periodic if s.segment <= snapshot.segment and s.step <= snapshot.step]
        self._current = snapshot
        self._evict(snapshot)
        return Move(what=what, back=back, entry=entry, snapshot=snapshot)

    def _all(self) -> list[Snapshot]:
        held: list[Snapshot | None] = [*self._periodic, self._current]
        for entry in (*self._done, *self._undone):
            held += [entry.before, entry.after]
        return list({id(s): s for s in held if s is not None}.values())

    def _evict(self, newest: Snapshot | None) -> None:
        """Drop snapshots until the budget is kept, or only `newest` is left."""
        while self.nbytes > self.budget and self._drop_one(newest):
            pass

    def _drop_one(self, keep: Snapshot | None) -> bool:
        """A periodic one, else one for a redo, else the oldest before an intervention; False where there is none."""

        def can_go(snapshot: Snapshot | None) -> bool:
            return snapshot is not None and snapshot is not keep

        old = next((s for s in self._periodic if can_go(s)), None)
        if old is not None:
            self._periodic.remove(old)
            return True
        undone = next((e for e in self._undone if can_go(e.after)), None)
        if undone is not None:
            undone.after = None
            return True
        entry = next((e for e in self._done if can_go(e.before)), None)
        if entry is None:
            return False
        entry.before, entry.why = None, "its snapshot had to make room for later ones"
        return True


def undo_entry(
    id_: int, step: int, command: TurnKnob, turned: Turned, before: Snapshot | None, *, rates: tuple[float, float]
) -> UndoEntry:
    """The intervention `id_`, made before update `step`; `rates` are the learning rates before and after it."""
    # Another optimizer's rate is not always the old one's, mapped: the scenario may name it.
    back, forth = ((TurnKnob(knob="lr", value=repr(r)),) if command.knob == "optimizer" else () for r in rates)
    target = "" if command.target == "all" else f" of {command.target}"
    return UndoEntry(
        id=id_,
        step=step,
        label=f"{command.knob}{target} {turned.old} → {turned.new}",
        back=(TurnKnob(knob=command.knob, value=turned.old, target=command.target), *back),
        forth=(
            TurnKnob(
                knob=command.knob,
                value=turned.new,
                target=command.target,
                way=turned.way,
                scale=turned.scale,
                where=turned.where,
                parameters=command.parameters,
            ),
            *forth,
        ),
        before=before,
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
