"""What can be gone back to: a snapshot before each intervention, at the start, and now and then, within a budget."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import SnapshotTaken
from tui_descent.training.knobs.ground import Ground, Turned
from tui_descent.training.undo.memory_budget import default_budget
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import HoldsState, Snapshot, bytes_needed

EVERY_S = 30.0
SHARE = 0.01  # of the time that the snapshots taken now and then may cost
# Knobs that change nothing about what is learnt: an undo leaves them.
INDIFFERENT = frozenset({"pace"})


@dataclass(slots=True, eq=False)
class Turn:
    """One intervention in force or undone: `before` it, and once undone `after`, where redo leads.

    Without a snapshot only its value can be turned back and forth, and `why` tells the reason.
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
class Step:
    """One way `back` or forth: to a snapshot, or by `turns` alone where there is none. `of` is the intervention."""

    what: str
    back: bool
    of: Turn | None = None
    snapshot: Snapshot | None = None
    turns: tuple[TurnKnob, ...] = ()


@dataclass
class Past:
    """The snapshots of one run, oldest first. `roots` gives what a snapshot is taken of, as it stands.

    `asked` is the memory for all of them in bytes; None for a tenth of what is free on the model's device.
    """

    ground: Ground
    user_state: tuple[HoldsState, ...] = ()
    asked: int | None = None
    randoms: bool = True
    _turns: list[Turn] = field(default_factory=list)
    _undone: list[Turn] = field(default_factory=list)
    _periodic: list[Snapshot] = field(default_factory=list)
    _now: Snapshot | None = None  # just gone to, and nothing has happened since
    _due_s: float = 0.0
    _why: str = ""  # the last take gave none

    @functools.cached_property
    def budget(self) -> int:
        """Bytes for all of them together, settled when the first is to be taken: by then training has its memory."""
        if self.asked is not None:
            return self.asked
        return default_budget(next((p.device for p in self.ground.model.parameters()), torch.device("cpu")))

    def holders(self) -> list[HoldsState]:
        """What a snapshot is taken of."""
        return [*self.ground.holders(), *self.user_state, *((RandomState(),) if self.randoms else ())]

    @property
    def nbytes(self) -> int:
        """Memory of all snapshots together."""
        return sum(snapshot.nbytes for snapshot in self._all())

    @property
    def in_force(self) -> tuple[int, ...]:
        """The interventions that an undo would take back, by id, oldest first."""
        return tuple(turn.id for turn in self._turns)

    def take(self, segment: int, step: int) -> Snapshot | None:
        """The state now; None where it does not fit into the budget."""
        if self._now is not None:
            return self._now
        try:
            needed = bytes_needed(self.ground.model, self.ground.optimizer)
            if needed <= self.budget:
                snapshot = Snapshot(self.holders(), segment=segment, step=step)
                if (needed := snapshot.nbytes) <= self.budget:
                    return snapshot
            self._why = f"the exact state takes {megabytes(needed)}, the undo budget is {megabytes(self.budget)}"
        except (MemoryError, torch.OutOfMemoryError):
            self._why = f"there is no memory left for the exact state, which takes {megabytes(needed)}"
        return None

    def taken(self, reason: str, segment: int, step: int) -> SnapshotTaken:
        """What is to be told of a snapshot that was taken there."""
        return SnapshotTaken(
            segment=segment,
            step=step,
            reason=reason,
            used_bytes=self.nbytes,
            budget_bytes=self.budget,
        )

    @property
    def due(self) -> bool:
        """Whether the state is to be taken now whatever happens."""
        return time.monotonic() >= self._due_s

    def now_and_then(self, segment: int, step: int) -> Snapshot | None:
        """The state now, where the last one taken so is long enough ago."""
        start_s = time.monotonic()
        if start_s < self._due_s:
            return None
        snapshot = self.take(segment, step)
        end_s = time.monotonic()
        self._due_s = end_s + max(EVERY_S, (end_s - start_s) / SHARE)
        if snapshot is None:
            return None
        self._periodic.append(snapshot)
        self._evict(None)
        return snapshot if snapshot in self._periodic else None

    def turned(self, turn: Turn) -> str | None:
        """An intervention was made: what was undone before it can no longer be redone.

        Returns why an undo will not restore the exact state; None where it will.
        """
        self._undone.clear()
        self._turns.append(turn)
        self._now = None
        if turn.before is None:
            turn.why = self._why
            return f"undo restores the value only: {self._why}"
        self._evict(turn.before)
        return None

    def moved_on(self) -> None:
        """Updates go on from here."""
        self._now = None

    def undo(self, segment: int, step: int, *, broken: bool) -> Step:
        """Back to before the last intervention in force; `broken`: to the last good snapshot where that is later.

        Raises `ValueError` where there is nothing to go back to.
        """
        last = self._turns[-1] if self._turns else None
        good = self.last_good() if broken else None
        if good is not None and (last is None or (good is not last.before and good.step >= last.step)):
            return self._gone_to(good, "the steps since the last good snapshot", back=True)
        if last is None:
            raise ValueError("nothing to undo: no intervention is in force")
        if last.before is None:
            self._undone.append(self._turns.pop())
            return Step(what=f"{last.label}; by value only: {last.why}", back=True, of=last, turns=last.back)
        last.after = self.take(segment, step)
        self._undone.append(self._turns.pop())
        return self._gone_to(last.before, last.label, back=True, of=last)

    def redo(self) -> Step:
        """Forward to where the last undo was made. Raises `ValueError` where nothing was undone."""
        if not self._undone:
            raise ValueError("nothing to redo")
        turn = self._undone.pop()
        self._turns.append(turn)
        after, turn.after = turn.after, None
        if after is None:
            return Step(what=f"{turn.label}; by value only", back=False, of=turn, turns=turn.forth)
        return self._gone_to(after, turn.label, back=False, of=turn)

    def refused(self, step: Step) -> None:
        """The step could not be made: as if it had not been asked for."""
        self._now = None
        if step.of is None:
            return
        if step.back:
            step.of.after = None
            self._turns.append(self._undone.pop())
        else:
            step.of.after = step.snapshot
            self._undone.append(self._turns.pop())

    def last_good(self) -> Snapshot | None:
        """The newest snapshot whose weights are numbers."""
        known = [*self._periodic, *(t.before for t in self._turns if t.before is not None)]
        return next((m for m in sorted(known, key=lambda m: -m.step) if m.finite()), None)

    def close(self) -> None:
        """The run is over: nothing can be gone back to any more."""
        self._now = None
        for kept in (self._turns, self._undone, self._periodic):
            kept.clear()

    def _gone_to(self, snapshot: Snapshot, what: str, *, back: bool, of: Turn | None = None) -> Step:
        self._periodic = [m for m in self._periodic if m.segment <= snapshot.segment and m.step <= snapshot.step]
        self._now = snapshot
        self._evict(snapshot)
        return Step(what=what, back=back, of=of, snapshot=snapshot)

    def _all(self) -> list[Snapshot]:
        held = [*self._periodic]
        for turn in (*self._turns, *self._undone):
            held += [m for m in (turn.before, turn.after) if m is not None]
        if self._now is not None:
            held.append(self._now)
        return list({id(m): m for m in held}.values())

    def _evict(self, newest: Snapshot | None) -> None:
        """Back within the budget, as far as that goes without `newest`."""
        while self.nbytes > self.budget and self._drop(newest):
            pass

    def _drop(self, keep: Snapshot | None) -> bool:
        """One taken now and then, else where redo leads, else the oldest before an intervention, if any."""

        def can_go(snapshot: Snapshot | None) -> bool:
            return snapshot is not None and snapshot is not keep

        old = next((m for m in self._periodic if can_go(m)), None)
        if old is not None:
            self._periodic.remove(old)
            return True
        undone = next((t for t in self._undone if can_go(t.after)), None)
        if undone is not None:
            undone.after = None
            return True
        turn = next((t for t in self._turns if can_go(t.before)), None)
        if turn is None:
            return False
        turn.before, turn.why = None, "its snapshot had to make room for later ones"
        return True


def megabytes(nbytes: int) -> str:
    """A size for a person."""
    return f"{nbytes / 1e6:,.0f} MB"


def undoable(
    id_: int, step: int, command: TurnKnob, turned: Turned, before: Snapshot | None, *, rates: tuple[float, float]
) -> Turn:
    """The intervention `id_`, made before update `step` where the state was `before`; the `rates` then and after it."""
    # Another optimizer's rate is not always the old one's, mapped: the scenario may name it.
    back, forth = ((TurnKnob(knob="lr", value=repr(r)),) if command.knob == "optimizer" else () for r in rates)
    target = "" if command.target == "all" else f" of {command.target}"
    return Turn(
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
