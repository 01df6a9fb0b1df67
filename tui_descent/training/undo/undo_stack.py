"""The undo stack of one run: snapshots before interventions, at the start and periodically, within a memory budget.

It decides which snapshot an undo goes back to. `command_handler.py` then restores it, by `Snapshot.restore`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import SnapshotTaken
from tui_descent.scenario.knobs import shown_value
from tui_descent.training.steering.knobs.context import KnobChange, KnobContext
from tui_descent.training.undo.disk_snapshots import DiskSnapshots
from tui_descent.training.undo.memory_budget import bytes_needed, default_budget
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import HoldsState, Snapshot
from tui_descent.training.undo.snapshot_file import Place, SnapshotError
from tui_descent.training.undo.state_on_disk import StateOnDisk

PERIOD_S = 30.0
PERIODIC_SHARE = 0.01  # the largest share of the time that periodic snapshots may take
MOST_SAVED = 50  # interventions that a snapshot on disk lists, for an undo after a resumption
FROM_DISK = " (from disk)"
NOT_LEFT = "no snapshot from before it is left"


@dataclass(slots=True, eq=False)
class UndoEntry:
    """One intervention that can be undone and redone. The state before it has its file at `place`, if it has one.

    `before` is the snapshot taken before it. `after` is the snapshot taken when it was undone, for a redo. If there is
    no snapshot in memory, an undo uses the one on disk. If there is none either, only the knob's value is restored, by
    the commands `undo_turns` or `redo_turns`; `reason` says why.
    """

    id: int
    place: Place
    label: str
    undo_turns: tuple[TurnKnob, ...]
    redo_turns: tuple[TurnKnob, ...]
    before: Snapshot | None
    after: Snapshot | None = None
    reason: str = ""

    @property
    def step(self) -> int:
        """The update before which it was made."""
        return self.place[1]


class SavedEntry(msgspec.Struct, frozen=True):
    """An `UndoEntry` as a snapshot on disk lists it."""

    id: int
    place: Place
    label: str
    undo_turns: tuple[TurnKnob, ...]
    redo_turns: tuple[TurnKnob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """What an undo (`back` is True) or a redo has to do: restore `snapshot`, or carry out `turns` if there is none.

    `what` describes it for the user.
    """

    what: str
    back: bool
    entry: UndoEntry | None = None
    snapshot: Snapshot | StateOnDisk | None = None
    turns: tuple[TurnKnob, ...] = ()


@dataclass
class UndoStack:
    """The snapshots of one run, and the interventions that can be undone and redone.

    `user_state` holds what a user loop passed as `state=`. `budget_asked` is the memory budget for all snapshots in
    bytes, None for the default on the model's device. `with_random_state` is True for scenario runs only: in a user
    loop the random number generators are not rewound. `periodic`: a snapshot is also taken from time to time.
    """

    context: KnobContext
    user_state: tuple[HoldsState, ...] = ()
    budget_asked: int | None = None
    with_random_state: bool = True
    periodic: bool = True
    # Where the states before interventions are on disk; None if they are not. In a user loop they are not: what it
    # passed as `state=` could not be restored together with the rest.
    disk: DiskSnapshots | None = None
    earlier: tuple[int, ...] = ()  # interventions in effect from before the run was resumed: they cannot be undone
    _done: list[UndoEntry] = field(default_factory=list)  # in effect, oldest first
    _undone: list[UndoEntry] = field(default_factory=list)  # can be redone, the last one first
    _periodic: list[Snapshot] = field(default_factory=list)
    # The snapshot that was restored last, which equals the current state. None after the next update or intervention.
    _current: Snapshot | None = None
    _next_periodic_s: float = 0.0
    _refusal: str = ""  # why the last `take` returned None

    @functools.cached_property
    def budget(self) -> int:
        """The budget in bytes for all snapshots. The default is computed at the first snapshot, when training has
        already allocated its memory.
        """
        if self.budget_asked is not None:
            return self.budget_asked
        return default_budget(next((p.device for p in self.context.model.parameters()), torch.device("cpu")))

    @property
    def nbytes(self) -> int:
        """Bytes used by all snapshots."""
        return sum(snapshot.nbytes for snapshot in self._all())

    @property
    def in_force(self) -> tuple[int, ...]:
        """The ids of the interventions that are in effect, oldest first."""
        return (*self.earlier, *(entry.id for entry in self._done))

    def places(self) -> list[Place]:
        """The places of the states that an undo has to find on disk if they are not in memory."""
        return [entry.place for entry in self._done]

    def saved(self) -> list[dict[str, Any]]:
        """The newest interventions in effect as plain values, for a snapshot on disk."""
        return [
            msgspec.to_builtins(SavedEntry(entry.id, entry.place, entry.label, entry.undo_turns, entry.redo_turns))
            for entry in self._done[-MOST_SAVED:]
        ]

    def resume(self, in_force: Iterable[int], saved: Iterable[SavedEntry]) -> None:
        """Go on in a run that was resumed. `in_force` are the ids of its interventions in effect, `saved` those of them
        that a snapshot has listed.
        """
        self._done = [
            UndoEntry(one.id, one.place, one.label, one.undo_turns, one.redo_turns, before=None, reason=NOT_LEFT)
            for one in saved
        ]
        known = {entry.id for entry in self._done}
        self.earlier = tuple(id_ for id_ in in_force if id_ not in known)

    @property
    def due(self) -> bool:
        """Whether a periodic snapshot is due."""
        return self.periodic and time.monotonic() >= self._next_periodic_s

    def holders(self) -> list[HoldsState]:
        """The objects whose state a snapshot contains."""
        return [*self.context.holders(), *self.user_state, *((RandomState(),) if self.with_random_state else ())]

    def take(self, segment: int, step: int) -> Snapshot | None:
        """A snapshot of the current state; None if it does not fit into the budget or the memory."""
        if self._current is not None:
            return self._current
        needed = bytes_needed(self.context.model, *(one.optimizer for one in self.context.optimizers))
        try:
            if needed <= self.budget:
                snapshot = Snapshot(self.holders(), segment=segment, step=step)
                if (needed := snapshot.nbytes) <= self.budget:
                    return snapshot
            self._refusal = f"the exact state takes {_mb(needed)}, the undo budget is {_mb(self.budget)}"
        except (MemoryError, torch.OutOfMemoryError):
            self._refusal = f"no memory is left for the exact state, which takes {_mb(needed)}"
        return None

    def take_periodic(self, segment: int, step: int) -> Snapshot | None:
        """Take and keep a periodic snapshot, if one is due and fits."""
        start_s = time.monotonic()
        if not self.periodic or start_s < self._next_periodic_s:
            return None
        snapshot = self.take(segment, step)
        end_s = time.monotonic()
        self._next_periodic_s = end_s + max(PERIOD_S, (end_s - start_s) / PERIODIC_SHARE)
        if snapshot is None:
            return None
        self._periodic.append(snapshot)
        self._evict(None)
        return snapshot if snapshot in self._periodic else None

    def event(self, reason: str, segment: int, step: int) -> SnapshotTaken:
        """The event for a snapshot that was taken before update `step`. `reason` says why it was taken."""
        return SnapshotTaken(
            segment=segment, step=step, reason=reason, used_bytes=self.nbytes, budget_bytes=self.budget
        )

    def push(self, entry: UndoEntry, *, on_disk: bool = False) -> str | None:
        """Add a new intervention. Interventions that were undone can then no longer be redone. `on_disk` says whether
        the state before it has been saved on disk.

        Returns a note for the user if an undo will not restore the exact state, otherwise None.
        """
        self._undone.clear()
        self._done.append(entry)
        self._current = None
        if entry.before is None:
            entry.reason = self._refusal
            return None if on_disk else f"an undo will restore only the value: {entry.reason}"
        self._evict(entry.before)
        return None

    def state_changed(self) -> None:
        """Call this after a change: the state no longer equals the snapshot that was restored last."""
        self._current = None

    def undo(self, segment: int, step: int, *, broken: bool, highest_loss: float = math.inf) -> Rewind:
        """Plan the undo of the last intervention in effect. The caller carries it out.

        `broken` means that the loss or a gradient is not finite. With `broken`, the undo goes back to the last good
        snapshot if that is newer than the intervention; its loss is at most `highest_loss`. If no good snapshot is in
        memory, it is searched on disk. Raises `ValueError` if there is nothing to undo.
        """
        last = self._done[-1] if self._done else None
        good = self.last_good(highest_loss) if broken else None
        if good is not None and (last is None or (good is not last.before and good.step >= last.step)):
            return self._rewind_to(good, f"the steps since step {good.step:,}", back=True)
        if broken and good is None and self.disk is not None:
            saved = self.disk.last_good(0 if last is None else last.id, highest_loss)
            if saved is not None:
                return self._rewind_to(saved, f"the steps since step {saved.step:,}{FROM_DISK}", back=True)
        if last is None:
            if self.earlier:
                raise ValueError("nothing to undo: the interventions were made before the run was resumed")
            raise ValueError("nothing to undo: no intervention is in effect")
        before: Snapshot | StateOnDisk | None = last.before
        if before is None:
            try:
                before = None if self.disk is None else self.disk.read(last.place)
            except SnapshotError as error:
                return self.undo_value(error)
        if before is None:
            return self.undo_value()
        last.after = self.take(segment, step)
        self._undone.append(self._done.pop())
        label = last.label if before is last.before else last.label + FROM_DISK
        return self._rewind_to(before, label, back=True, entry=last)

    def undo_value(self, error: SnapshotError | None = None) -> Rewind:
        """Plan to restore only the value of the knob that the last intervention in effect has changed. `error` says why
        its snapshot on disk cannot be used.
        """
        last = self._done.pop()
        self._undone.append(last)
        if error is not None:
            last.reason = f"its snapshot on disk cannot be used: {error}"
        what = f"{last.label}; only the value was restored: {last.reason}"
        return Rewind(what=what, back=True, entry=last, turns=last.undo_turns)

    def keep(self, rewind: Rewind) -> None:
        """Keep the state in memory that `rewind` has read from the disk, where its file is then removed."""
        if isinstance(rewind.snapshot, StateOnDisk) and rewind.entry is not None:
            before = self.take(rewind.snapshot.segment, rewind.snapshot.step)
            rewind.entry.before = self._current = before
            self._evict(before)

    def redo(self) -> Rewind:
        """Plan the return to the state before the last undo. Raises `ValueError` if there is nothing to redo."""
        if not self._undone:
            raise ValueError("nothing to redo")
        entry = self._undone.pop()
        self._done.append(entry)
        after, entry.after = entry.after, None
        if after is None:
            what = f"{entry.label}; only the value was restored"
            return Rewind(what=what, back=False, entry=entry, turns=entry.redo_turns)
        return self._rewind_to(after, entry.label, back=False, entry=entry)

    def cancel(self, rewind: Rewind) -> None:
        """Revert the stack to its state before `rewind`, which could not be carried out."""
        self._current = None
        if rewind.entry is None:
            return
        if rewind.back:
            rewind.entry.after = None
            self._done.append(self._undone.pop())
        else:
            assert not isinstance(rewind.snapshot, StateOnDisk)
            rewind.entry.after = rewind.snapshot
            self._undone.append(self._done.pop())

    def last_good(self, highest_loss: float = math.inf) -> Snapshot | None:
        """The newest snapshot with finite weights, taken when the loss was at most `highest_loss`."""
        snapshots = [*self._periodic, *(entry.before for entry in self._done if entry.before is not None)]
        calm = (s for s in sorted(snapshots, key=lambda s: -s.step) if s.loss is None or not s.loss > highest_loss)
        return next((s for s in calm if s.has_finite_weights()), None)

    def close(self) -> None:
        """Free all snapshots at the end of the run."""
        self._current = None
        self._done.clear()
        self._undone.clear()
        self._periodic.clear()

    def _rewind_to(
        self, snapshot: Snapshot | StateOnDisk, what: str, *, back: bool, entry: UndoEntry | None = None
    ) -> Rewind:
        # Later periodic snapshots are dropped, since they belong to steps that the rewind abandons.
        self._periodic = [s for s in self._periodic if s.segment <= snapshot.segment and s.step <= snapshot.step]
        self._current = snapshot if isinstance(snapshot, Snapshot) else None
        self._evict(self._current)
        return Rewind(what=what, back=back, entry=entry, snapshot=snapshot)

    def _all(self) -> list[Snapshot]:
        """All snapshots. A snapshot that several entries share is listed once."""
        snapshots: list[Snapshot | None] = [*self._periodic, self._current]
        for entry in (*self._done, *self._undone):
            snapshots += [entry.before, entry.after]
        return list({id(s): s for s in snapshots if s is not None}.values())

    def _evict(self, keep: Snapshot | None) -> None:
        """Drop snapshots until the rest fits into the budget, or only `keep` is left."""
        while self.nbytes > self.budget and self._drop_one(keep):
            pass

    def _drop_one(self, keep: Snapshot | None) -> bool:
        """Drop one snapshot other than `keep`; returns False if there is none.

        Periodic snapshots are dropped first, then snapshots for a redo, then the oldest snapshot for an undo.
        """

        def droppable(snapshot: Snapshot | None) -> bool:
            return snapshot is not None and snapshot is not keep

        periodic = next((s for s in self._periodic if droppable(s)), None)
        if periodic is not None:
            self._periodic.remove(periodic)
            return True
        undone = next((e for e in self._undone if droppable(e.after)), None)
        if undone is not None:
            undone.after = None
            return True
        done = next((e for e in self._done if droppable(e.before)), None)
        if done is None:
            return False
        done.before, done.reason = None, "its snapshot was dropped to make room for later ones"
        return True


def undo_entry(
    id_: int,
    place: Place,
    command: TurnKnob,
    turned: KnobChange,
    before: Snapshot | None,
    *,
    rates: tuple[float, float],
) -> UndoEntry:
    """The entry for intervention `id_`, made in the state at `place`. `rates` are the learning rates before and after
    it.
    """
    # If a scenario specifies the rate of the new optimizer, converting the rate back would not give the old rate.
    lr_before, lr_after = (
        (TurnKnob(knob="lr", value=repr(rate)),) if command.knob == "optimizer" else () for rate in rates
    )
    target = "" if command.target == "all" else f" of {command.target}"
    change = " → ".join(shown_value(command.knob, value) for value in (turned.old, turned.new))
    # One command for each of several optimizers that were changed.
    back = [TurnKnob(knob=command.knob, value=old, target=one) for one, old, _ in turned.each]
    again = [TurnKnob(knob=command.knob, value=new, target=one) for one, _, new in turned.each]
    if not turned.each:
        back = [TurnKnob(knob=command.knob, value=turned.old, target=command.target)]
        again = [
            TurnKnob(
                knob=command.knob,
                value=turned.new,
                target=command.target,
                way=turned.way,
                scale=turned.scale,
                where=turned.where,
                parameters=command.parameters,
            )
        ]
    return UndoEntry(
        id=id_,
        place=place,
        label=f"{command.knob}{target} {change}",
        undo_turns=(*back, *lr_before),
        redo_turns=(*again, *lr_after),
        before=before,
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
